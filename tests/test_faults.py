"""The faults of tests/faults.py can still be put into the code; it shows that they are noticed."""

from __future__ import annotations

import pytest

from tests.faults import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.module)
def test_a_fault_can_be_put_into_the_code(fault: Fault) -> None:
    text = (ROOT / fault.module).read_text(encoding="utf-8")
    assert text.count(fault.before) == 1
    assert (ROOT / fault.tests.partition(" ")[0].partition("::")[0]).exists()
