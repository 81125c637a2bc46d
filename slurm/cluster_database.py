"""The MariaDB of a local cluster, in which slurmdbd keeps its accounting."""

import os
import shutil
import subprocess
from pathlib import Path

from cluster_config import PATH, ClusterError

_SQL = Path("/usr/share/mysql")


def database_command(root: Path, port: int) -> list[str]:
    """Return the command that starts the database; create its tables if it has none.

    Raises:
        ClusterError: the tables cannot be created.
    """
    data, scratch = root / "database" / "data", root / "database" / "tmp"
    command = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={scratch}"]
    command += ["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--innodb-doublewrite=0"]
    command += ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0"]
    if not (data / "mysql").exists():
        (data / "mysql").mkdir(parents=True)
        scratch.mkdir(parents=True, exist_ok=True)
        # The input of mariadb-install-db, whose shell script takes five seconds longer.
        parts = ("mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data")
        sql = "use mysql;\nSET @auth_root_socket=NULL;\n"
        sql += "".join((_SQL / f"{part}.sql").read_text() for part in parts)
        sql += "\ncreate database slurm_acct_db;\n"
        with open(root / "log" / "mariadb-bootstrap.out", "wb") as log:
            done = subprocess.run(
                [*command, "--bootstrap"],
                input=sql.encode(),
                stdout=log,
                stderr=log,
                env=dict(os.environ, PATH=PATH),
            )
        if done.returncode:
            shutil.rmtree(data)
            raise ClusterError(f"MariaDB cannot create its tables; see {log.name}")
    command += [f"--socket={root}/database/s", "--bind-address=127.0.0.1", f"--port={port}"]
    return [*command, "--skip-name-resolve", "--performance-schema=OFF"]
