"""What a cut writes down of the place it wrote and read back."""

from millstream_bridge.cutover.proof import PartitionCut

CUT = PartitionCut(
    partition=3, stream="FLIGHTS", low=0, high=9, offset=5, next_seq=6, obstacle="not written yet"
)


def test_a_place_read_back_as_it_was_written_is_no_obstacle() -> None:
    cut = CUT.read_back(6, 6)

    assert (cut.after, cut.obstacle) == (6, None)


def test_a_place_read_back_as_another_is_an_obstacle_that_names_both() -> None:
    assert CUT.read_back(6, 7).obstacle == "written as 6, read back as 7"
    assert CUT.read_back(6, None).obstacle == "written as 6, read back as None"
