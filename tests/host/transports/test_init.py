"""Which device a URL means."""

from __future__ import annotations

import pytest

from host.transports import open_transport, sim
from moe_hw.errors import UsageError


@pytest.mark.parametrize("url", ["", "sim", "sim:", "pcie:0000:01:00.0", "ulx3s-85f", ":sim"])
def test_url_without_a_known_scheme_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected a device URL .sim:BOARD.*, got") as error:
        open_transport(url)
    assert repr(url) in str(error.value)


def test_target_and_progress_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "open_sim", lambda target, progress: (target, progress))
    assert open_transport("sim:some:thing", print) == ("some:thing", print)  # type: ignore[comparison-overlap]
