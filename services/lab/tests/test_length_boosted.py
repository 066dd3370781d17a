"""Boosted quantiles: the graph answers what scikit-learn does, joined by the lines that the rival draws."""

import random

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="training needs `make setup-train`")

from paceline_lab.lengths.ensemble.boosted import Boosted, BoostedParams, fit
from paceline_lab.lengths.example import Example, text_id
from paceline_lab.lengths.graph import answer, check, session
from paceline_lab.lengths.rivals.masses import from_quantiles
from paceline_predictor.features import features
from paceline_predictor.model import LengthQuestion


def example(number: int, draw: random.Random) -> Example:
    long = number % 2
    prompt = f"{'Tell the whole story of' if long else 'Name one'} thing {number} {draw.random()}"
    tokens = round((200 if long else 8) * draw.lognormvariate(0, 0.3)) + 1
    return Example(
        question=LengthQuestion(model="m", app="stories" if number % 3 else "", prompt_head=prompt),
        output_tokens=tokens,
        censored=False,
        source="s",
        family="chat",
        prompt_id=text_id(prompt),
        weight=1.0,
    )


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    draw = random.Random(3)
    return [example(number, draw) for number in range(300)]


@pytest.fixture(scope="module")
def boosted(examples: list[Example]) -> Boosted:
    return fit(examples, {}, BoostedParams(iterations=40, components=4))


def test_the_graph_answers_what_the_boosters_do(boosted: Boosted, examples: list[Example]) -> None:
    model = boosted.graph()
    check(model)
    given = features([one.question for one in examples[:40]])
    tags = given.text[:, boosted.apps]
    table = np.concatenate([given.numeric, boosted.front.transform(given.text), tags], axis=1)
    logs = np.stack([booster.predict(table) for booster in boosted.boosters], axis=1)
    expected = from_quantiles(np.array(boosted.params.levels), logs, boosted.params.tail)
    found = answer(session(model), given.text, given.numeric)[0]
    gaps = np.abs(np.cumsum(found - expected, axis=1)).max(axis=1)
    # Where the outer levels coincide the rival puts its end points further off: that moves the mass beyond them alone.
    assert gaps.max() <= boosted.params.levels[0] + 1e-6
    assert np.median(gaps) < 0.01


def test_wording_tells_long_from_short(boosted: Boosted) -> None:
    texts = ("Tell the whole story of thing 7 0.12345", "Name one thing 7 0.12345")
    given = features([LengthQuestion(model="m", app="stories", prompt_head=text) for text in texts])
    medians = answer(session(boosted.graph()), given.text, given.numeric)[1][:, 0]
    assert medians[0] > 2 * medians[1]


def test_nothing_is_learned_from_nothing() -> None:
    with pytest.raises(ValueError, match="no examples"):
        fit([], {}, BoostedParams())
