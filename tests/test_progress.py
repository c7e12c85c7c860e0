"""The line that a person sees."""

from rethink_jax import progress


def snapshots(monkeypatch, times):
    """The last line after one update at each of the given times; 100 steps between two updates."""
    shown = progress.Progress()
    for i, now in enumerate(times):
        monkeypatch.setattr(progress.time, "monotonic", lambda now=now: now)
        snapshot = progress.Snapshot(3, 4, 5, 10, 1, 100 * i, 900.0)
        shown.update(snapshot)
    return shown._line(snapshot)


def test_line_has_what_is_asked_for(monkeypatch):
    line = snapshots(monkeypatch, [0.0, 1.0, 2.0])
    for part in ("5/10 trials", "lanes 3/4", "100 trial-steps/s", "ETA 0:09", "diverged 1"):
        assert part in line


def test_rate_is_of_the_last_seconds(monkeypatch):
    assert "100 trial-steps/s" in snapshots(monkeypatch, [0.0, 1000.0, *range(1001, 1040)])


def test_rate_of_dispatches_longer_than_the_window(monkeypatch):
    assert "2 trial-steps/s" in snapshots(monkeypatch, [0.0, 50.0, 100.0])


def test_durations():
    assert progress.duration(3) == "0:03"
    assert progress.duration(3 * 3600 + 62) == "3:01:02"


def test_plain_lines_where_there_is_no_terminal(monkeypatch, capsys):
    with progress.Progress() as shown:
        for now in (0.0, 1.0, 30.0):
            monkeypatch.setattr(progress.time, "monotonic", lambda now=now: now)
            shown._last_line = min(shown._last_line, 1.0)
            shown.update(progress.Snapshot(1, 1, 1, 2, 0, int(now), 10.0))
    assert capsys.readouterr().out.count("trials") == 1
