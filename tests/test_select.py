"""The queue that a person sees, and the rates that come of the answers."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from tests.mlflow_server import lay_database
from tyre_lightning.commands import ALARM, _rates
from tyre_lightning.config import RatesConfig, SelectConfig, to_select_config
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.predictions import open_writer, read_predictions, read_rows
from tyre_lightning.line.answers import DEFECTIVE, DISAGREED, GOOD, NEITHER, UNTOLD, read_answers
from tyre_lightning.line.queue import AUDITED, COLUMNS, LEARN, REJECTS, REVIEWED, Queue
from tyre_lightning.line.rates import Rates, measure
from tyre_lightning.line.select import draw, make_plan, select
from tyre_lightning.line.strata import Window
from tyre_lightning.model.inspector import answer_columns

CLASSES = ("bulge", "crack", "good")
SAID = answer_columns([f"p_{name}" for name in CLASSES])
NOTHING = {"class": None, "picture_decision": None, "reason": None, "novelty": None}
NOTHING |= {f"p_{name}": None for name in CLASSES}


def rows(number: int, seed: int = 0, pictures: int = 1, named: bool = False) -> list[dict[str, Any]]:
    """A window: 1 in 10 tyres is defective by the model, and some are unlike good ones."""
    rng = np.random.default_rng(seed)
    found = []
    for tyre in range(number):
        high = rng.beta(8, 2) if rng.random() < 0.1 else rng.beta(0.5, 10)
        strange = float(rng.random())
        decision = "reject" if high > 0.6 else "review" if high > 0.3 or strange < 0.005 else "accept"
        for picture in range(pictures):
            score = float(high if picture == 0 else high * rng.random())
            looks = {"p_bulge": score * 0.3, "p_crack": score * 0.7, "p_good": 1 - score}
            name = f"T{tyre:05d}" if named else None
            found.append({
                "key": f"w{seed}/{tyre:05d}_{picture}.png", "tyre": name, "class": "crack" if score > 0.5 else "good",
                "decision": decision, "picture_decision": decision, "reason": None, "novelty": strange, **looks,
                "error": None,
            })  # fmt: skip
    return found


def write(path: Path, table: Sequence[Mapping[str, Any]]) -> str:
    with open_writer(str(path), ["key", *SAID]) as writer:
        writer.write(table)
    return str(path)


def choose(predictions: str, output: Path, **options: Any) -> Queue:
    config = SelectConfig(predictions, str(output), **options)
    select(OmegaConf.structured(config))
    return Queue.read(output)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("window") / "predictions.parquet", rows(3000))


@pytest.fixture
def queue(predictions: str, tmp_path: Path) -> Queue:
    return choose(predictions, tmp_path / "queue.parquet", budget=400, model="models:/tyres/1")


def test_a_queue_has_all_that_waits_an_audit_of_every_stratum_and_some_to_learn_from(
    queue: Queue, predictions: str
) -> None:
    window = read_predictions(predictions)
    pictures = queue.pictures
    assert [*pictures.columns] == [*COLUMNS, "p_bulge", "p_crack", "p_good"]
    assert len(pictures) == 400 == pictures["tyre"].nunique()
    assert {*pictures["tyre"][pictures["why"] == REVIEWED]} == {*window["key"][window["decision"] == "review"]}
    counts = Counter(stratum.why for stratum in queue.strata.values())
    assert counts == {REVIEWED: 1, AUDITED: 4, REJECTS: 1}
    totals = Counter(pictures["stratum"][pictures["why"] != LEARN])
    for name, stratum in queue.strata.items():
        assert totals[name] == stratum.drawn >= 1
        mine = pictures[(pictures["stratum"] == name) & (pictures["why"] != LEARN)]
        assert np.allclose(mine["probability"].to_numpy(dtype=float), stratum.drawn / stratum.total)
    assert sum(stratum.total for stratum in queue.strata.values()) == 3000
    assert pictures["probability"][pictures["why"] == LEARN].isna().all()
    assert 20 < (pictures["why"] == LEARN).sum() < 80
    assert (queue.model, queue.good_class, queue.max_escape_rate) == ("models:/tyres/1", "good", 0.05)
    near = [queue.strata[name] for name in ("accepted, near the threshold", "accepted, plain")]
    assert near[0].drawn / near[0].total > near[1].drawn / near[1].total


def test_what_waits_comes_first_and_the_others_show_not_why_they_are_there(queue: Queue) -> None:
    why = queue.pictures["why"].tolist()
    reviewed = why.count(REVIEWED)
    assert why[:reviewed] == [REVIEWED] * reviewed
    assert len({*why[reviewed : reviewed + 30]}) == 3


def test_a_queue_says_where_its_pictures_lie_and_whose_answers_they_have(tmp_path: Path) -> None:
    path = str(tmp_path / "predictions.parquet")
    about = {"model": "models:/tyres/3", "root": "s3://plant/week-48"}
    with open_writer(path, ["key", *SAID], about) as writer:
        writer.write(rows(300))
    told = choose(path, tmp_path / "queue.parquet", budget=50)
    assert (told.model, told.root) == ("models:/tyres/3", "s3://plant/week-48")
    other = choose(path, tmp_path / "other.parquet", budget=50, model="models:/tyres/4", root="elsewhere")
    assert (other.model, other.root) == ("models:/tyres/4", "elsewhere")


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_the_same_window_gives_the_same_queue(ending: str, predictions: str, queue: Queue, tmp_path: Path) -> None:
    """From every kind of file, in whatever order its rows are; another seed gives another."""
    same = rows(3000)
    mixed = [same[place] for place in np.random.default_rng(1).permutation(3000)]
    other = write(tmp_path / f"other{ending}", mixed)
    again = choose(other, tmp_path / "again.parquet", budget=400)
    pd.testing.assert_frame_equal(again.pictures, queue.pictures)
    seeded = choose(predictions, tmp_path / "seeded.parquet", budget=400, seed=1)
    assert {*seeded.pictures["tyre"]} != {*queue.pictures["tyre"]}


def test_probabilities_are_how_often_tyres_are_drawn(predictions: str) -> None:
    window = Window.of(read_predictions(predictions), None, predictions)
    strata = window.strata()
    plan = make_plan(window, strata, 400)
    often, times = np.zeros(len(window)), 200
    for seed in range(times):
        why, probability = draw(window, strata, plan, seed)
        often += np.isin(why, [REVIEWED, AUDITED, REJECTS])
        assert ((why != "") == ~np.isnan(probability) | (why == LEARN)).all()
    for name, total, drawn in zip(plan.names, plan.total, plan.drawn, strict=True):
        share = drawn / total
        seen = often[strata == name] / times
        assert seen.mean() == pytest.approx(share)
        assert seen.std() == pytest.approx(math.sqrt(share * (1 - share) / times), rel=0.25, abs=1e-9)


@pytest.mark.parametrize("budget", [6, 20, 50, 100, 700, 2999, 3000, 5000])
def test_the_budget_is_kept_and_never_a_stratum_without_draws(predictions: str, budget: int) -> None:
    window = Window.of(read_predictions(predictions), None, predictions)
    plan = make_plan(window, window.strata(), budget)
    assert plan.drawn.sum() + plan.learn == min(budget, 3000)
    assert (plan.drawn >= 1).all() and (plan.drawn <= plan.total).all()
    if budget >= 3000:
        assert (plan.drawn == plan.total).all()


def test_where_more_waits_than_the_budget_allows_chance_chooses_and_it_says_so(
    predictions: str, tmp_path: Path
) -> None:
    config = SelectConfig(predictions, str(tmp_path / "q.parquet"), budget=40)
    queue, lines = select(OmegaConf.structured(config))
    assert queue.strata["review"].drawn == 30 < queue.strata["review"].total
    assert any("that the line sent to a person, drawn by chance" in line for line in lines)
    assert any("wait for review: raise budget=40" in line for line in lines)


def test_it_says_what_the_queue_will_tell(predictions: str, tmp_path: Path) -> None:
    config = SelectConfig(predictions, str(tmp_path / "q.parquet"), budget=400, width=0.1)
    _, lines = select(OmegaConf.structured(config))
    said = "\n".join(lines)
    assert "q.parquet: 400 of 3000 tyres" in said
    assert "escape rate to expect, with a confidence of 0.95: at most " in said
    assert "an interval of 10.0% takes " in said


def test_a_tyre_comes_with_all_its_pictures_and_the_worst_of_them(tmp_path: Path) -> None:
    source = write(tmp_path / "p.parquet", rows(300, pictures=3, named=True))
    queue = choose(source, tmp_path / "q.parquet", budget=60)
    assert (queue.pictures.groupby("tyre").size() == 3).all()
    assert queue.pictures["tyre"].nunique() == 60
    window = Window.of(read_predictions(source), None, source)
    table = read_predictions(source)
    worst = 1 - table.groupby("tyre")["p_good"].min().astype(float)
    assert np.allclose(worst.loc[window.names], window.scores)


def test_what_could_not_be_read_waits_for_a_person(tmp_path: Path) -> None:
    broken = [{**NOTHING, "key": "x.png", "tyre": None, "decision": None, "error": "it is not an image file"}]
    queue = choose(write(tmp_path / "p.parquet", [*rows(200), *broken]), tmp_path / "q.parquet", budget=60)
    assert queue.pictures.set_index("tyre").loc["x.png", "why"] == REVIEWED


@pytest.mark.parametrize("key", ["=1+1.png", "'=1.png", "'x.png", "-5.png", "007", "NA"])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_predictions_come_back_as_they_were(key: str, ending: str, tmp_path: Path) -> None:
    """In a csv too, where what a spreadsheet would compute is written otherwise."""
    given = [{**rows(1)[0], "key": key, "tyre": key}, rows(2)[1]]
    table = read_predictions(write(tmp_path / f"p{ending}", given))
    assert table.to_dict("records") == given


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_lists_come_back_as_they_were_whatever_the_names_in_them(ending: str, tmp_path: Path) -> None:
    names = [
        "crack",
        "cut, deep",
        '"quoted"',
        'half "',
        " led by a space",
        "a\nb",
        "=1+1",
        "'x",
        "Größe; 2",
        ",",
        "it's",
    ]
    lists = [[name] for name in names] + [[*two] for two in permutations(names, 2)] + [names]
    given = [{**rows(1)[0], "defects": some, "nearest": some[::-1]} for some in lists]
    with open_writer(path := str(tmp_path / f"p{ending}"), [*given[0]]) as writer:
        writer.write(given)
    found = [*read_rows(path, ())]
    assert [(row["defects"], row["nearest"]) for row in found] == [(some, some[::-1]) for some in lists]


def test_few_accepted_tyres_are_not_divided(tmp_path: Path) -> None:
    queue = choose(write(tmp_path / "p.csv", rows(60)), tmp_path / "q.parquet", budget=20)
    assert {*queue.strata} <= {"review", "accepted", "rejected"}


def test_learning_is_from_the_doubtful(predictions: str, queue: Queue) -> None:
    window = Window.of(read_predictions(predictions), None, predictions)
    picked = np.isin(window.names, queue.pictures["tyre"][queue.pictures["why"] == LEARN])
    decided = window.decisions != "review"
    doubt = np.minimum(np.abs(window.scores - 0.45), window.novelty)
    assert np.median(doubt[picked]) < 0.5 * np.median(doubt[decided])


def test_mistakes_are_one_sentence(predictions: str, tmp_path: Path) -> None:
    output = tmp_path / "q.parquet"
    table = read_predictions(predictions)
    undecided, unknown = tmp_path / "undecided.parquet", tmp_path / "unknown.parquet"
    table.assign(decision=None).to_parquet(undecided)
    table.rename(columns={"p_good": "p_fine one"}).to_parquet(unknown)
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    (tmp_path / "none.parquet").write_text("no")
    for source, options, message in [
        (predictions, {"budget": 5}, r"budget=5 must be at least 6, a tyre of each stratum: review; accepted, near"),
        (str(undecided), {}, r"holds no decision: predict with a model that has an operating point"),
        (str(unknown), {}, r"is that of good tyres is not known: give good_class="),
        (
            str(tmp_path / "none.csv"),
            {},
            r"has no column class, decision, error, key, novelty, tyre: give what",
        ),
        (str(tmp_path / "none.parquet"), {}, r"cannot be read as predictions"),
        (str(tmp_path / "none.txt"), {}, r"must end in one of .parquet, .csv, .jsonl"),
        (str(tmp_path / "gone.csv"), {}, r"there is no file .*gone.csv: give what predict.py wrote"),
    ]:
        with pytest.raises(UserError, match=message):
            choose(source, output, **options)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictions": None}, "predictions is not set"),
        ({"output": "queue.csv"}, r"output=queue\.csv must end in \.parquet"),
        ({"output": "s3://b/q.parquet"}, "is an address, and must be a place on this machine"),
        (
            {"model": "models:/tyres@champion"},
            "is an alias, which moves on to other versions: give models:/NAME/VERSION",
        ),
        ({"budget": 0}, "budget=0 must be at least 1"),
        ({"width": 1.0}, r"width=1\.0 must be between 0 and 1"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_select_config(OmegaConf.structured(SelectConfig(**{"predictions": "p.csv", **options})))


def say(folder: Path, *answers: tuple[str, str, Any], name: str = "a") -> None:
    """Append answers: who, tyre, what; each a second later."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    before = len(file.read_text().splitlines()) if file.exists() else 0
    with file.open("a") as out:
        for number, (who, tyre, what) in enumerate(answers, before):
            time = f"2026-11-26T10:{number // 60 % 60:02d}:{number % 60:02d}Z"
            line = {"format": 1, "time": time, "who": who, "tyre": tyre, "keys": [tyre], "tags": [None], "answer": what}
            out.write(json.dumps({**line, "queue": "q"}) + "\n")


def test_answers_of_several_people_and_second_thoughts(tmp_path: Path) -> None:
    say(tmp_path / "said", ("ann", "a", "good"), ("ann", "b", "good"), ("ann", "b", "crack"), ("ann", "c", "crack"),
        ("ann", "c", None), ("ann", "d", "not a tyre"), ("ann", "e", "cannot tell"), ("ann", "f", ["crack", "bulge"]),
        ("ann", "g", "good"), ("ann", "h", "crack"), ("ann", "i", "cannot tell"))  # fmt: skip
    say(tmp_path / "said", ("bob", "g", "crack"), ("bob", "h", "bulge"), ("bob", "i", "good"), name="b")
    assert read_answers(str(tmp_path / "said"), "good") == {
        "a": GOOD, "b": DEFECTIVE, "d": NEITHER, "e": UNTOLD, "f": DEFECTIVE, "g": DISAGREED, "h": DEFECTIVE, "i": GOOD,
    }  # fmt: skip


NUMBER = '{"who": "a", "tyre": "b", "time": "", "answer": 3}'


@pytest.mark.parametrize("line", ["no json", '{"tyre": "a"}', '["tyre"]', "3", NUMBER])
def test_a_line_that_is_no_answer_is_named(line: str, tmp_path: Path) -> None:
    say(tmp_path, ("ann", "a", "good"))
    (tmp_path / "b.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: it is no answer, which has tyre, who, time and answer"):
        read_answers(str(tmp_path), "good")


def truth(tyre: str, escaping: bool) -> str:
    """Every tenth tyre of those accepted is defective where the promise is broken."""
    return "crack" if escaping and int(tyre.partition("/")[2][:5]) % 10 == 0 else "good"


def answer_all(queue: Queue, folder: Path, escaping: bool, name: str = "a") -> None:
    seen = queue.pictures.drop_duplicates("tyre")
    told = [
        ("ann", tyre, truth(tyre, escaping) if decision == "accept" else "crack" if p > 0.5 else "good")
        for tyre, decision, p in zip(seen["tyre"], seen["decision"], 1 - seen["p_good"], strict=True)
    ]
    say(folder, *told, name=name)


def rates(queue: Path | str, answers: Path, **options: Any) -> Rates:
    return measure(OmegaConf.structured(RatesConfig(str(queue), str(answers), **{"tracking_uri": None, **options})))


def test_rates_of_a_window(queue: Queue, tmp_path: Path) -> None:
    answer_all(queue, tmp_path / "answers", escaping=False)
    found = rates(tmp_path / "queue.parquet", tmp_path / "answers")
    escape, overkill = found.week
    assert float(escape.share) == 0 < float(escape.high) < 0.6
    assert 0 <= float(overkill.low) <= float(overkill.share) <= float(overkill.high) < 0.1
    assert not found.broken and found.windows == 1 and found.answered[UNTOLD] == 0
    said = "\n".join(found.lines())
    assert "promised: at most 5.0%" in said and "nothing proves that the promise is broken" in said


def test_no_picked_tyre_and_no_stranger_counts(queue: Queue, tmp_path: Path) -> None:
    answer_all(queue, tmp_path / "answers", escaping=False)
    before = rates(tmp_path / "queue.parquet", tmp_path / "answers")
    learnt = queue.pictures["tyre"][queue.pictures["why"] == LEARN]
    say(tmp_path / "answers", *(("zoe", tyre, ["crack"]) for tyre in [*learnt, "stranger"]), name="z")
    after = rates(tmp_path / "queue.parquet", tmp_path / "answers")
    assert after.week == before.week and after.answered == before.answered


def test_who_cannot_tell_widens_the_interval_and_raises_no_alarm(queue: Queue, tmp_path: Path) -> None:
    answer_all(queue, tmp_path / "answers", escaping=False)
    before = rates(tmp_path / "queue.parquet", tmp_path / "answers")
    audited = queue.pictures["tyre"][queue.pictures["why"] == AUDITED].tolist()
    say(tmp_path / "answers", *(("ann", tyre, "cannot tell") for tyre in audited[:20]), name="z")
    text = (tmp_path / "answers" / "z.jsonl").read_text().replace("T10:", "T11:")
    (tmp_path / "answers" / "z.jsonl").write_text(text)
    after = rates(tmp_path / "queue.parquet", tmp_path / "answers")
    assert after.answered[UNTOLD] == 20
    assert float(after.week[0].high) > float(before.week[0].high)
    assert after.level >= before.level
    assert any("20 of which it is not known" in line for line in after.lines())


def test_a_broken_promise_ends_with_its_exit_code_and_weeks_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, answers = tmp_path / "queues", tmp_path / "answers"
    for week in range(4):
        source = write(tmp_path / f"week{week}.parquet", rows(2000, seed=week))
        os.utime(source, (1.8e9 + 604_800 * week,) * 2)
        answer_all(choose(source, folder / f"{week}.parquet", budget=500), answers, escaping=True, name=f"week{week}")
    one, four = rates(folder / "3.parquet", answers), rates(folder / "*.parquet", answers)
    assert (one.windows, four.windows) == (1, 4) and one.week == four.week
    assert four.together[0].high - four.together[0].low < one.week[0].high - one.week[0].low
    assert four.broken and float(four.together[0].low) > 0.05
    with pytest.raises(SystemExit) as ended:
        _rates(OmegaConf.structured(RatesConfig(str(folder / "*.parquet"), str(answers), tracking_uri=None)))
    assert ended.value.code == ALARM == 5
    said = capsys.readouterr().out
    assert "all 4 windows of this model" in said and "the promise is probably broken" in said


def test_windows_of_another_model_are_left_out(
    predictions: str, queue: Queue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write(tmp_path / "other.parquet", rows(500, seed=9))
    choose(other, tmp_path / "queue2.parquet", budget=50, model="models:/tyres/2")
    answer_all(queue, tmp_path / "answers", escaping=False)
    found = rates(tmp_path / "queue*.parquet", tmp_path / "answers")
    assert (found.windows, found.model) == (1, "models:/tyres/2")
    assert "1 queues of other models than models:/tyres/2 are left out" in caplog.text


def test_mlflow_has_one_row_for_a_window(queue: Queue, tmp_path: Path) -> None:
    lay_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    answer_all(queue, tmp_path / "answers", escaping=False)
    for _ in range(2):  # later answers replace the row
        found = rates(tmp_path / "queue.parquet", tmp_path / "answers", tracking_uri=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tyre-line")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["line/window_escape_rate_high"] == pytest.approx(float(found.week[0].high))
    assert run.data.tags["line.model"] == "models:/tyres/1"
    (point,) = client.get_metric_history(run.info.run_id, "line/alarm_level")
    assert point.timestamp == 1000 * pd.Timestamp(queue.time).timestamp()


def test_a_server_that_is_away_costs_no_rates(queue: Queue, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answer_all(queue, tmp_path / "answers", escaping=False)
    found = rates(tmp_path / "queue.parquet", tmp_path / "answers", tracking_uri="sqlite:////dev/null/all.db")
    assert found.windows == 1 and "the rates are not in MLflow" in caplog.text


def test_mistakes_of_rates_are_one_sentence(queue: Queue, predictions: str, tmp_path: Path) -> None:
    for given, answers, message in [
        (str(tmp_path / "gone.parquet"), tmp_path, "is no file, and no glob with a match: give what tyre select wrote"),
        (predictions, tmp_path, "is no queue that tyre select wrote"),
        (str(tmp_path / "queue.parquet"), tmp_path / "gone", r"is no folder with answers \(\*\.jsonl\)"),
    ]:
        with pytest.raises(UserError, match=message):
            rates(given, answers)
    (tmp_path / "queue2.parquet").write_bytes((tmp_path / "queue.parquet").read_bytes())
    with pytest.raises(UserError, match="names two queues of the window"):
        rates(tmp_path / "queue*.parquet", tmp_path)
