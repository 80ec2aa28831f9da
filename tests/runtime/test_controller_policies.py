"""The policies: what they choose, budgets over every window, and what they say."""

import random

import numpy as np
import pytest

from draftwire.errors import ConfigError
from draftwire.runtime.edge.mode import Mode
from draftwire.runtime.pacing.auto import Auto
from draftwire.runtime.pacing.baselines import PipeSd, Qsv, Ucb
from draftwire.runtime.pacing.controller import (
    PUBLISHED,
    Round,
    make_controller,
)
from draftwire.runtime.pacing.governor import WINDOW_S, Governor
from draftwire.runtime.pacing.length_rule import best_ratio
from draftwire.sampling import Proposal

WAIT = Mode(preempt=frozenset())


class Board:
    """Stop-and-wait rounds with a text of dice, no session: only the decisions."""

    def __init__(
        self, controller, *, rate=0.8, draft_s=0.01, wait_s=0.1, seed=1, forward_s=0.03
    ):
        self.controller = controller
        self.rate, self.draft_s, self.wait_s = rate, draft_s, wait_s
        self.forward_s = forward_s
        self.rng = random.Random(seed)
        self.t_s = 0.0
        self.tokens = 0
        self.lengths = []
        self.spend = []  # (from, to, watts)
        self.commits = []
        controller.begin(WAIT)

    def draw(self, seconds, watts):
        self.spend.append((self.t_s, self.t_s + seconds, watts))
        self.t_s += seconds

    def round(self, *, certain=False, draft_w=10.0, wait_w=3.0):
        controller, block = self.controller, []
        limit = controller.limit()
        forward_s = self.forward_s
        while len(block) < limit:
            self.draw(self.draft_s, draft_w)
            controller.drafted_in(self.draft_s)
            right = self.rng.random() < self.rate
            said = None if not certain else (0.97 if right else 0.1)
            block.append((right, Proposal(0, said)))
            if controller.enough([p for _, p in block]):
                break
        wait_s = self.wait_s if block else forward_s
        if block:
            controller.sent(len(block))
        self.draw(wait_s, wait_w)
        accepted = 0
        while accepted < len(block) and block[accepted][0]:
            accepted += 1
        if block:
            controller.judged(len(block), accepted)
        self.tokens += accepted + 1
        self.lengths.append(len(block))
        self.commits.append((self.t_s, accepted + 1))
        net = self.wait_s - forward_s
        controller.measured(
            Round(self.t_s, accepted + 1, len(block), accepted, wait_s, net, 0.0, forward_s,
                  80 + 2 * len(block), net, None, 0)
        )  # fmt: skip

    def rounds(self, count, **options):
        for _ in range(count):
            self.round(**options)
        return self

    def mean_length(self, last=60):
        return sum(self.lengths[-last:]) / last


def test_specs():
    specs = ("auto", "auto:energy", "auto:cost", "fixed:3", "off", "pipesd:0.9:0.4")
    for spec in (*specs, *PUBLISHED):
        controller = make_controller(spec)
        assert controller.name == spec.replace(":0.9:0.4", "")
        controller.begin(WAIT)
        assert 0 <= controller.limit() <= 255
        assert "\n" not in controller.explain()
    for spec in (
        "auto:fast",
        "fixed:0",
        "fixed:x",
        "fixed:256",
        "magic",
        "",
        "off:1",
        "pipesd:0.5",
    ):
        with pytest.raises(ConfigError):
            make_controller(spec)
    with pytest.raises(ConfigError, match="budget"):
        make_controller("fixed:4", max_watts=5.0)
    with pytest.raises(ConfigError, match="positive"):
        make_controller("auto", max_watts=0.0)


@pytest.mark.parametrize(
    "rate,wait_s", [(0.5, 0.16), (0.7, 0.08), (0.8, 0.16), (0.9, 0.16)]
)
def test_without_confidence_it_finds_the_best_length(rate, wait_s):
    """Drafts that are as likely everywhere: the table of optima, learned from verdicts."""
    board = Board(Auto("latency"), rate=rate, wait_s=wait_s)
    board.controller._trial.draw_back = lambda why: None  # the length alone
    board.rounds(250)
    curve = [rate**k for k in range(1, 65)]
    best = best_ratio(curve, wait_s, 0.01)[1]
    lengths = board.lengths[-120:]
    text = sum(1 + sum(curve[:k]) for k in lengths)
    assert text / sum(wait_s + 0.01 * k for k in lengths) > 0.96 * best


def test_confidence_ends_blocks_where_they_fail():
    sure = Board(Auto("latency"), rate=0.8, wait_s=0.2, forward_s=0.12).rounds(
        200, certain=True
    )
    blind = Board(Auto("latency"), rate=0.8, wait_s=0.2, forward_s=0.12).rounds(200)
    assert sure.tokens / sure.t_s > 1.1 * blind.tokens / blind.t_s
    assert "confidence" in sure.controller.explain()
    assert "rtt 80 ms" in sure.controller.explain()


def test_it_draws_back_where_drafting_does_not_pay_and_returns():
    board = Board(Auto("latency"), rate=0.3, wait_s=0.3).rounds(120)
    assert board.lengths[-40:].count(0) > 30
    assert "streaming" in board.controller.explain()
    board.rate, board.wait_s = 0.97, 0.05
    board.rounds(300)
    assert board.lengths[-40:].count(0) < 10


def test_a_step_of_the_round_trip_changes_the_length_at_once():
    board = Board(Auto("latency"), rate=0.85, wait_s=0.08, forward_s=0.075).rounds(150)
    short = board.mean_length()
    board.wait_s = 0.21
    board.rounds(15)
    assert board.mean_length(8) > 1.3 * short


def test_energy_drafts_less_than_latency():
    lengths = {}
    for objective in ("latency", "energy"):
        controller = Auto(objective)
        controller.power({"draft": 40.0, "verify-wait": 3.0})
        board = Board(controller, rate=0.8, wait_s=0.2)
        controller._trial.draw_back = lambda why: None
        lengths[objective] = board.rounds(200, draft_w=40.0).mean_length()
    assert lengths["energy"] < lengths["latency"]


def worst_window(spend, window_s=WINDOW_S):
    """Return the most joules in any window, by trying all that begin or end at an edge."""
    times, joules = [0.0], [0.0]
    for a, b, w in spend:
        times.append(b)
        joules.append(joules[-1] + (b - a) * w)
    edges = np.array(times)
    starts = np.concatenate([edges, edges - window_s]).clip(0.0)
    spent = np.interp(starts + window_s, edges, joules) - np.interp(starts, edges, joules)
    return float(spent.max())


@pytest.mark.parametrize("budget", [4.0, 6.0, 9.0])
def test_no_window_exceeds_a_budget_of_watts(budget):
    controller = Auto("latency", Governor(max_watts=budget))
    controller.power({"draft": 10.0, "verify-wait": 3.0})
    board = Board(controller, rate=0.9, draft_s=0.02, wait_s=0.12, forward_s=0.1)
    while board.t_s < 60:
        board.round()
    assert worst_window(board.spend) <= budget * WINDOW_S
    assert sum((b - a) * w for a, b, w in board.spend) > 0.75 * min(budget, 7.0) * board.t_s
    assert sum(board.lengths) > 50, "the budget leaves room for drafts"


def test_a_budget_that_waiting_alone_breaks_is_named():
    controller = Auto("latency", Governor(max_watts=2.0))
    controller.power({"draft": 10.0, "verify-wait": 3.0})
    Board(controller).rounds(40)
    assert "waiting alone" in controller.governor.warning()


def test_joules_per_token_stay_within_a_budget():
    controller = Auto("latency", Governor(max_joules_per_token=0.35))
    controller.power({"draft": 30.0, "verify-wait": 3.0})
    board = Board(controller, rate=0.6, draft_s=0.02, wait_s=0.2)
    while board.t_s < 60:
        board.round(draft_w=30.0)
    for start in range(0, 50, 2):
        low, high = float(start), start + WINDOW_S
        joules = sum(w * max(0.0, min(b, high) - max(a, low)) for a, b, w in board.spend)
        tokens = sum(n for t, n in board.commits if low <= t <= high)
        assert joules <= 0.35 * tokens * 1.02
    free = Auto("latency")
    free.power({"draft": 30.0, "verify-wait": 3.0})
    other = Board(free, rate=0.6, draft_s=0.02, wait_s=0.2)
    free._trial.draw_back = lambda why: None
    other.rounds(200, draft_w=30.0)
    spent = sum((b - a) * w for a, b, w in other.spend) / other.tokens
    assert spent > 0.35, "the budget binds"


@pytest.fixture
def priced():
    """Rounds of 100 ms and 0.3 J without drafts, 10 ms and 0.12 J for each of them."""

    def make(wait_s=0.1, up_bytes_s=None, **budgets):
        controller = make_controller("flexspec", **budgets)
        controller.drafted_in(0.01)
        for k in (2, 6, 2, 6):
            controller.measured(
                Round(0.0, 1, k, 0, wait_s, wait_s - 0.03, 0.0, 0.03, 80 + 2 * k,
                      wait_s - 0.03, up_bytes_s)
            )  # fmt: skip
        return controller

    return make


@pytest.mark.parametrize(
    "acceptance,up_bytes_s,length",
    [
        # Eight pay more than one once g > T_m / T_f, whatever the two are: 10 / 100 ms,
        (0.095, None, 1),
        (0.105, None, 8),
        # and at 1,000 bytes a second 80 ms more of frame, 2 ms of a token: 12 / 180 ms.
        (0.065, 1000.0, 1),
        (0.068, 1000.0, 8),
    ],
)
def test_flexspec_is_the_published_ratio(priced, acceptance, up_bytes_s, length):
    controller = priced(up_bytes_s=up_bytes_s)
    controller._acceptance = acceptance
    assert controller.limit() == length


@pytest.mark.parametrize(
    "watts,joules,length",
    [
        (7.01, None, 8),  # (0.3 + 0.12 K) J in (0.1 + 0.01 K) s: 7.0 W at 8
        (6.99, None, 7),
        (5.60, None, 4),  # 5.57 W
        (3.81, None, 0),  # one draft takes 3.82 W
        (None, 0.192, 8),  # (0.3 + 0.12 K) J for 1 + 0.7 K tokens: 0.1909 J at 8
        (None, 0.190, 0),
        (6.10, 0.201, 5),  # at least 4.8 for the joules, at most 5.3 for the watts
        (5.60, 0.201, 0),
    ],
)
def test_flexspec_keeps_its_budgets(priced, watts, joules, length):
    controller = priced(max_watts=watts, max_joules_per_token=joules)
    assert controller.limit() == 8, "no watts are known yet"
    controller.power({"draft": 12.0, "verify-wait": 3.0})
    assert controller.limit() == length


def test_qsv_follows_certainty_and_ignores_the_round_trip():
    good = Board(Qsv(), rate=0.95).rounds(120, certain=True).mean_length()
    bad = Board(Qsv(), rate=0.4).rounds(120, certain=True).mean_length()
    assert good > bad
    near = Board(Qsv(), rate=0.8, wait_s=0.05).rounds(120, certain=True).mean_length()
    far = Board(Qsv(), rate=0.8, wait_s=0.5).rounds(120, certain=True).mean_length()
    assert near == pytest.approx(far, abs=1.0)
    assert Qsv().resolution() in Qsv.resolutions


def test_qsv_reckons_with_the_bits_that_were_sent():
    """Each at the resolution that its block was drafted at, not at the next one's."""
    qsv, used = Qsv(), []
    for _ in range(400):
        used.append(qsv.resolution())
        drafted = qsv.limit()
        qsv.sent(drafted)
        qsv.judged(drafted, drafted - 1)
        nbytes = 80 + drafted * (2 if used[-1] == 16 else 20)
        qsv.measured(
            Round(
                0.0, drafted, drafted, drafted - 1, 0.1, 0.07, 0.0, 0.03, nbytes, 0.07, 2e3
            )
        )
    assert qsv._bits[0] == pytest.approx(16.0, abs=12.0)
    assert used[-1] == 16 and {*used} == {16, 100}, "the dear one was tried, and left"
    assert qsv._bits[1] > 100


def test_pipesd_sends_at_either_threshold():
    pipesd = PipeSd(all_of=0.5, one_of=0.3)
    sure = Proposal(1, 0.9)
    assert not pipesd.enough([sure] * 6), "0.53"
    assert pipesd.enough([sure] * 7), "0.48"
    assert pipesd.enough([sure, Proposal(1, 0.2)])
    assert not pipesd.enough([Proposal(1)] * 3), "nothing known is no doubt"


@pytest.mark.parametrize("rate,wait_s", [(0.5, 0.16), (0.9, 0.16)])
def test_ucb_finds_a_good_length(rate, wait_s):
    board = Board(Ucb(), rate=rate, wait_s=wait_s).rounds(1500)
    curve = [rate**k for k in range(1, 13)]
    best = best_ratio(curve, wait_s, 0.01)[1]
    lengths = board.lengths[-500:]
    text = sum(1 + sum(curve[:k]) for k in lengths)
    assert text / sum(wait_s + 0.01 * k for k in lengths) > 0.9 * best


def test_what_is_out_behind_a_rejection_is_forgotten():
    auto = Auto("latency")
    auto.begin(Mode(pipeline=4))
    for _ in range(3):
        auto.limit()
        auto.enough([Proposal(1, 0.9), Proposal(2, 0.9)])
        auto.sent(2)
    auto.judged(2, 1)
    assert auto._out == []
    auto.overtaken(1)  # nothing is out: learned all the same
    assert auto.survival.acceptance > 0


def test_a_budget_ends_a_block_that_is_being_drafted():
    controller = Auto("latency", Governor(max_watts=2.0))
    controller.begin(Mode())
    controller.power({"draft": 12.0, "verify-wait": 1.0})
    block, most = [], controller.limit()
    assert most >= 2
    sure = Proposal(1, 0.999)
    for _ in range(400):  # every token surely right: the budget alone can end it
        block.append(sure)
        controller.drafted_in(0.05)
        if controller.enough(block):
            break
    assert len(block) < 400
    controller.sent(len(block))
    assert "budget of 2 W is near" in controller.explain()
