"""Drafting as clients ask for it and see it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import settings
from cluster.config import ConfigMistake, load
from model.config import ModelConfig
from scheduler.request import DraftMethod
from sigmoe import Sampling, messages
from sigmoe.cli.status import picture
from sigmoe.v1 import admin_service_pb2, inference_service_pb2, types_pb2
from tests.cluster.checkpoint_folder import write_checkpoint_folder
from tests.cluster.conftest import World
from tests.cluster.grpc_calls import Answer, answers, generate, violations


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"draft": types_pb2.DRAFT_METHOD_EAGLE3},
            {"sampling.draft": "eagle3 is not loaded here: ngram and off are allowed"},
        ),
        ({"draft": 99}, {"sampling.draft": "99 is not allowed: a value of DraftMethod is"}),
        ({"max_drafts": 65}, {"sampling.max_drafts": "65 is not allowed: 0 to 64 is"}),
        ({"max_drafts": -1}, {"sampling.max_drafts": "-1 is not allowed: 0 to 64 is"}),
    ],
)
async def test_what_cannot_be_drafted_is_refused(
    world: World, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    assert await violations(world.inference.Generate(generate(**fields))) == expected


async def test_a_request_drafts_as_it_asks(world: World) -> None:
    asked = Sampling(draft="ngram", max_drafts=2, max_tokens=20, temperature=0.0, ignore_eos=True)
    call = messages.generate_request("What is asthma?", asked)
    usages = [response.usage async for response in world.inference.Generate(call) if response.HasField("usage")]
    (_, submitted), *_ = world.executor.submitted
    assert (submitted.draft_method, submitted.max_drafts) == (DraftMethod.NGRAM, 2)
    drafts = messages.chunk(inference_service_pb2.GenerateResponse(usage=usages[-1])).usage
    assert drafts is not None and drafts.drafts is not None
    assert len(drafts.drafts.drafted) == 2 and drafts.drafts.tau is not None and drafts.drafts.tau > 1.0
    cluster = messages.cluster(await world.admin.GetCluster(admin_service_pb2.GetClusterRequest()))
    assert sum(drafts.drafts.rounds_by_length) == drafts.drafts.rounds
    assert (drafts.draft_method, drafts.draft_reason) == ("ngram", "k=3: fixed")
    (looked_up,) = cluster.ranks[0].drafting
    assert cluster.ranks[0].drafts == looked_up.drafts == drafts.drafts
    assert (looked_up.method, looked_up.state, looked_up.length) == ("ngram", "fixed", 3)
    told = f"{sum(looked_up.drafts.drafted)} drafted, {looked_up.drafts.committed_tokens} committed, "
    line = f"  drafts ngram fixed, 3 at a time: {told}{looked_up.drafts.tau:.2f} tokens a round, accepted "
    assert line in str(picture(cluster)) and "; k=3: fixed\n" in str(picture(cluster))


def test_a_draft_method_without_a_round_is_shown_as_well() -> None:
    states = admin_service_pb2.DraftingState.keys()
    of_rank = [
        admin_service_pb2.DraftingStatus(method=types_pb2.DRAFT_METHOD_EAGLE3, state=state, reason="why")
        for state in states
    ]
    response = admin_service_pb2.GetClusterResponse(ranks=[admin_service_pb2.RankStatus(drafting=of_rank)])
    cluster = messages.cluster(response)
    shown = [line for line in str(picture(cluster)).splitlines() if line.startswith("  drafts")]
    named = ("unknown", "off", "fixed", "learning", "drafting", "resting", "broken")
    assert shown == [f"  drafts eagle3 {name}, 0 at a time: no round yet; why" for name in named]


async def told_once_stopped(world: World, **fields: Any) -> Answer:
    (answer,) = (await answers(world.inference.Generate(generate(max_tokens=40, **fields)))).values()
    return answer


async def test_a_stop_string_ends_rounds_tokens_and_figures_together(world: World) -> None:
    """Wherever it ends: in front of a round, inside one, behind the drafts that were accepted."""
    whole = await told_once_stopped(world)
    num_cut = 0
    for place in range(4, len(whole.text) - 2, 3):
        stop = whole.text[place : place + 3]
        plain = await told_once_stopped(world, stop=[stop], draft=types_pb2.DRAFT_METHOD_OFF)
        drafted = await told_once_stopped(world, stop=[stop], draft=types_pb2.DRAFT_METHOD_NGRAM)
        assert plain.usage is not None and drafted.usage is not None
        assert (drafted.text, drafted.token_ids, drafted.endings) == (plain.text, plain.token_ids, plain.endings)
        assert drafted.usage.output_tokens == plain.usage.output_tokens == len(drafted.token_ids)
        counts = drafted.usage.drafts
        assert counts.committed_tokens < drafted.usage.output_tokens, "the first token comes with the prompt"
        assert counts.rounds <= counts.committed_tokens <= counts.rounds + sum(counts.accepted)
        num_cut += counts.committed_tokens < counts.rounds + sum(counts.accepted)
    assert num_cut > 0, "some end inside the accepted drafts of a round"


async def test_drafting_off_leaves_no_trace(world: World) -> None:
    call = messages.generate_request("What is asthma?", Sampling(draft="off", max_tokens=20, temperature=0.0))
    usages = [response.usage async for response in world.inference.Generate(call) if response.HasField("usage")]
    assert not usages[-1].HasField("drafts")
    assert world.executor.submitted[0][1].draft_method is DraftMethod.NONE
    assert (
        await world.inference.GetModel(inference_service_pb2.GetModelRequest())
    ).draft_model == types_pb2.DRAFT_METHOD_OFF


def test_a_client_names_methods_as_people_do() -> None:
    assert Sampling(draft="eagle3").to_proto().draft == types_pb2.DRAFT_METHOD_EAGLE3
    with pytest.raises(ValueError, match=r"sampling\.draft"):
        Sampling(draft="magic").to_proto()


def test_the_server_finds_its_head(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_checkpoint_folder(tmp_path_factory.mktemp("model") / "tiny")
    model = ModelConfig.from_dir(folder)

    def drafts(*overrides: str) -> tuple[DraftMethod, str | None]:
        config = load(None, [f"model.path={folder}", *overrides], {})
        made = settings.engine_config(config, model).speculation
        return made.method, made.draft_dir

    assert drafts()[0] is DraftMethod.NONE
    assert drafts("speculation.method=ngram")[0] is DraftMethod.NGRAM
    with pytest.raises(ConfigMistake, match=r"speculation\.method: eagle3 needs a head"):
        drafts("speculation.method=eagle3")
    with pytest.raises(ConfigMistake, match=r"speculation\.method: mtp needs a checkpoint with an MTP layer"):
        drafts("speculation.method=mtp")
    (folder / "eagle3").mkdir()
    (folder / "eagle3" / "config.json").write_text("{}")
    assert drafts() == (DraftMethod.EAGLE3, str(folder / "eagle3"))
    assert drafts("speculation.method=off")[0] is DraftMethod.NONE
    with pytest.raises(ConfigMistake, match="ngram_shortest 9 is more than ngram_longest 4"):
        drafts("speculation.ngram_shortest=9")
