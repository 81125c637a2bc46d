"""No test that needs Triton's interpreter is left out of the process that has it."""

from pathlib import Path

import pytest
from support.triton_interpreter import assert_tests_pass_in_the_interpreter

FILE = """
import os
import pytest

@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
def test_of_a_kernel():
    pass

def test_of_something_else():
    pass
"""


def test_options_that_leave_out_a_test_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "test_kernels.py"
    file.write_text(FILE)
    assert_tests_pass_in_the_interpreter(str(file), "-k", "kernel and not else")
    with pytest.raises(AssertionError, match=r"skipped here and elsewhere: .*test_of_a_kernel"):
        assert_tests_pass_in_the_interpreter(str(file), "-k", "else")
