"""Print an audit as a table."""

from __future__ import annotations

from longplay.data_shards.audit.audit import Audit
from longplay.data_shards.audit.findings import findings
from longplay.launch.console.tables import new_table, print_table


def print_audit(audit: Audit, num_users: int) -> None:
    """Print the findings of an audit, problems marked with `!`.

    Args:
        audit: the audit.
        num_users: users of the dataset.
    """
    lines = findings(audit)
    table = new_table("", "audit", "value", "meaning")
    table.columns[1].justify = table.columns[3].justify = "left"
    table.columns[3].no_wrap = False
    for line in lines:
        table.add_row("!" if line.problem else "", line.name, line.value, line.text)
    print_table(table)
    print(f"problems: {sum(line.problem for line in lines)} of {len(lines)}")
    found = audit.baselines
    if found is not None:
        sample = "" if found.num_users == num_users else f", a random sample of the {num_users:,}"
        print(
            f"baselines: trained on {found.num_users:,} users{sample}; tested on {found.num_queries:,}, "
            "ranking all items that are not in the history"
        )
