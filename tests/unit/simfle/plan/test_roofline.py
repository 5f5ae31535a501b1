"""The table of a step's minimum time."""

from simfle.plan.roofline import GOOD, TARGET, RooflinePart, roofline_table


def test_the_table_sums_the_longer_times_and_states_the_target_as_a_share() -> None:
    parts = [
        RooflinePart("convolutions", 2e12, 1e9, 0.002, 0.001, 0.002, "arithmetic"),
        RooflinePart("norms", 0.0, 6e9, 0.0, 0.006, 0.006, "memory"),
    ]
    lines = roofline_table(parts, 16).splitlines()
    assert lines[2] == "| convolutions | 2.00 | 1.0 | 2.0 ms | 1.0 ms | 2.0 ms | arithmetic |"
    assert lines[4] == "| step of 16 images | 2.00 | 7.0 | | | 8.0 ms | |"
    assert "2,000 images/s" in lines[5]
    assert lines[6:] == [
        f"| target, at least, {TARGET:.0%} | | | | | {2000 * TARGET:,.0f} images/s | |",
        f"| target, preferably, {GOOD:.0%} | | | | | {2000 * GOOD:,.0f} images/s | |",
    ]
    assert {len(line.split("|")) for line in lines} == {9}
