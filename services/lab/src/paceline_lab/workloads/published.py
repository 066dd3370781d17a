"""Length statistics of public workloads, each with a distribution that has them. Numbers of tokens only.

The knots of a JITServe distribution are the smoothest ones with the published mean, standard deviation, median and
95th percentile; the others are quantiles of public traces. `Published` says what a sample must show.
"""

from dataclasses import dataclass

from paceline_lab.workloads.lengths import QuantileCurve

_LEVELS = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Published:
    """Statistics in tokens as a source gives them, and a curve that meets them."""

    mean: float
    std: float
    p50: float
    p95: float
    curve: QuantileCurve


def _published(mean: float, std: float, p50: float, p95: float, *knots: float) -> Published:
    return Published(mean, std, p50, p95, QuantileCurve(_LEVELS, knots))


# JITServe (NSDI'26, arXiv 2504.20068), Table 2.
# fmt: off
CHAT_PROMPT = _published(93, 244, 27, 391,
    2, 3.707, 6.6, 11.99, 27, 56.83, 174.7, 391, 1146, 2673, 3500)
CHAT_OUTPUT = _published(318, 313, 225, 1024,
    5.056, 18.41, 48.22, 102.1, 225, 400.4, 730.8, 1024, 1378, 1771, 2165)
RESEARCH_PROMPT = _published(1911, 2781, 403, 7573,
    60, 65.35, 85.16, 140.7, 403, 2727, 6732, 7573, 10910, 15150, 19560)
RESEARCH_OUTPUT = _published(534, 644, 410, 1544,
    8, 30.75, 84.24, 185, 410, 598.9, 1025, 1544, 2876, 6063, 11430)
CHAT_TASK_PROMPT = _published(1300, 912, 1097, 2767,
    170.9, 320.6, 512.2, 738.3, 1097, 1580, 2213, 2767, 4481, 7902, 12650)
CHAT_TASK_OUTPUT = _published(4458, 1176, 4417, 6452,
    1750, 2400, 3035, 3643, 4417, 5171, 5944, 6452, 7425, 8662, 9832)
RESEARCH_TASK_PROMPT = _published(12223, 8407, 10807, 29282,
    800, 1850, 3547, 6057, 10810, 15630, 23140, 29280, 38320, 49680, 61350)
RESEARCH_TASK_OUTPUT = _published(3541, 2370, 3148, 7525,
    304.1, 678.2, 1232, 1954, 3148, 4460, 6115, 7525, 11420, 18560, 27730)

# Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024; CC BY 4.0), first three quarters of the hour.
AZURE_CONV_PROMPT = _published(1180, 1153, 1014, 4085,
    2, 120, 212, 395, 1014, 1203, 3840, 4085, 4127, 5875, 14050)
AZURE_CONV_OUTPUT = _published(201.2, 161.7, 115, 448,
    7, 24, 51, 81, 115, 393, 421, 448, 598, 939, 1000)
AZURE_CODE_PROMPT = _published(2036, 1970, 1463, 7155,
    3, 36, 147, 555, 1463, 2720, 5185, 7155, 7436, 7437, 7437)
AZURE_CODE_OUTPUT = _published(27.73, 61.11, 13, 88,
    6, 6, 7, 9, 13, 21, 47, 88, 238, 690, 1400)

# Mooncake conversation trace (Qin et al., FAST 2025; Apache-2.0).
MOONCAKE_PROMPT = _published(12040, 15800, 6909, 39550,
    891, 896, 964, 2306, 6909, 15367, 27367, 39550, 85400, 121301, 126195)
MOONCAKE_OUTPUT = _published(342.6, 249.9, 350, 698,
    1, 3, 24, 156, 350, 472, 597, 698, 1119, 2000, 2000)

# DeepSeek-R1 clients of ServeGen (Xiang et al., arXiv 2505.09999; Apache-2.0), from its histograms; the last bin is
# closed at 64k.
REASONING_PROMPT = _published(1270, 3970, 207, 6740,
    4, 11, 18, 41, 207, 483, 2101, 6740, 23451, 34037, 64000)
REASONING_OUTPUT = _published(1532, 2326, 793, 5716,
    9, 171, 288, 428, 793, 1499, 3440, 5716, 12691, 21143, 33688)
# fmt: on

# Quantiles without published moments. BIRD mini-dev SQL by 31 models (CC BY-SA 4.0); prompts of AIME, LiveCodeBench
# and IFEval (QwQ, Apache-2.0); mini-swe-agent calls (LMCache agent trace, Apache-2.0).
SQL_OUTPUT = QuantileCurve(_LEVELS, (2, 15, 26, 37, 49, 64, 85, 103, 168, 374, 514))
PROBLEM_PROMPT = QuantileCurve(_LEVELS, (13, 21, 28, 38, 61, 385, 623, 754, 1040, 1386, 1496))
SWE_PROMPT = QuantileCurve(_LEVELS, (1148, 1243, 1995, 2850, 4051, 5896, 21477, 28770, 40260, 45607, 46594))
SWE_OUTPUT = QuantileCurve(_LEVELS, (39, 44, 56, 76, 92, 118, 157, 187, 256, 326, 348))
# Seconds between an agent's call and its next one that a tool's result brings (Claude Code sessions, callanjfox/
# kv-cache-tester, Apache-2.0), cut at 2 minutes: longer gaps are people's.
TOOL_GAP_S = QuantileCurve(_LEVELS, (0.1, 3, 4, 5, 9, 19, 76, 120, 120, 120, 120))
# Schema and question of a text-to-SQL prompt: assumed, no public count of tokens was at hand.
SQL_PROMPT = QuantileCurve(_LEVELS, (200, 350, 600, 900, 1500, 2400, 3800, 5200, 8000, 12000, 14000))
