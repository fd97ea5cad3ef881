"""Ray Data writing a batch's output: the same bytes as without it, on two machines whose CPUs are all taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster import batch_pieces
from cluster.batch_input import BatchInput
from cluster.batch_journal import Journal
from cluster.batch_output import BatchOutput, Order
from cluster.batch_pieces import put_here
from cluster.ray_batch_data import RayData
from cluster.ray_session import RaySession
from tests.cluster.batch_journals import ANSWERS, filled

# Ray Data warns of its own defaults.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]

COUNT = 500


class Taker:
    """Holds CPUs, as ranks do."""

    def is_there(self) -> bool:
        return True


@pytest.fixture(scope="module")
def full_ray() -> Iterator[None]:
    machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=machine | {"include_dashboard": False})
    cluster.add_node(**machine)
    session = RaySession(cluster.address, namespace="sigmoe-tests")
    session.start(num_cpus=2)
    takers = [ray.remote(Taker).options(num_cpus=1).remote() for _ in range(2)]
    assert all(ray.get([taker.is_there.remote() for taker in takers]))
    yield
    session.stop()
    cluster.shutdown()


@pytest.fixture
def ray_data(full_ray: None) -> Iterator[RayData]:
    ray_data = RayData()
    yield ray_data
    ray_data.stop()


@pytest.fixture
def source(tmp_path: Path) -> BatchInput:
    (tmp_path / "in").mkdir()
    for name, count in (("a.jsonl", COUNT - 1), ("b.jsonl", 0), ("c.jsonl", 1)):
        (tmp_path / "in" / name).write_text("{}\n" * count)
    return BatchInput.find(str(tmp_path / "in"))


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(batch_pieces, "BLOCK_BYTES", 1000)
    journal = filled(tmp_path / "j", [ANSWERS[index % 10] for index in range(COUNT)], seed=2)
    yield journal
    journal.close()


@pytest.mark.parametrize(("name", "order"), [("out", Order.INPUT), ("out", Order.COMPLETED), ("out/", Order.INPUT)])
def test_it_writes_what_this_process_would(
    ray_data: RayData, journal: Journal, source: BatchInput, tmp_path: Path, name: str, order: Order
) -> None:
    found: list[dict[str, bytes]] = []
    for folder, put in (("here", put_here), ("tasks", ray_data.put)):
        output = BatchOutput.of(f"{tmp_path}/{folder}/{name}", source, order)
        layout = output.layout(journal, [0, COUNT - 1, COUNT - 1], COUNT)
        assert len(layout.pieces) > 10
        output.finish(layout, journal, put)
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        found.append({str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert len(found[0]) == (3 if name.endswith("/") else 1)


def test_a_task_that_cannot_write_is_a_plain_error(ray_data: RayData, journal: Journal, tmp_path: Path) -> None:
    layout = batch_pieces.Layout.of(journal, range(COUNT), [0])
    with pytest.raises(OSError, match=r"could not write it: FileNotFoundError: .*No such file"):
        ray_data.put(layout, journal.segments, [tmp_path / "nowhere"])
    assert not (tmp_path / "nowhere").exists(), "a task that comes late must not begin a file anew"


def test_tasks_run_where_the_journal_is(ray_data: RayData, journal: Journal, tmp_path: Path) -> None:
    notes = tmp_path / "notes"

    class Noting(list[Path]):
        """Segments that tell on which machine they are read."""

        def __getitem__(self, number: Any) -> Any:
            with notes.open("a") as file:
                file.write(f"{ray.get_runtime_context().get_node_id()}\n")
            return super().__getitem__(number)

    (tmp_path / "out").touch()
    ray_data.put(batch_pieces.Layout.of(journal, range(COUNT), [0]), Noting(journal.segments), [tmp_path / "out"])
    found = notes.read_text().split()
    assert len(found) > 10, "a piece each"
    assert set(found) == {ray.get_runtime_context().get_node_id()}
