"""A row in words and in TeX, made from the row itself: what tables of methods show."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import partial

from margins.methods.rows import Phase, Ramp, Row, Schedule, Steps, Term, called, describe

#: Of a loss or penalty by name: its symbol in words and in TeX, with @ for the samples that it looks at.
SYMBOLS = {
    "cross_entropy": ("CE(p(@), y)", r"\mathrm{CE}(p(@), y)"),
    "cross-entropy": ("CE(p(@), y)", r"\mathrm{CE}(p(@), y)"),
    "boosted_cross_entropy": ("BCE(p(@), y)", r"\mathrm{BCE}(p(@), y)"),
    "multi_margin": ("L'(@)", "L'(@)"),
    "margin_cross_entropy": ("L'(@) + CE(p(@), y)", r"L'(@) + \mathrm{CE}(p(@), y)"),
    "shifted": ("CE(p(f(@) - s m 1_y), y)", r"\mathrm{CE}(p(f(@) - s\,m\,1_y), y)"),
    "pairing": ("mean (f(x') - f(x))^2", r"\overline{(f(x') - f(x))^2}"),
    "pair_kl": ("KL(p(x) || p(x'))", r"\mathrm{KL}(p(x) \,\Vert\, p(x'))"),
    "kl": ("KL(p(x) || p(x'))", r"\mathrm{KL}(p(x) \,\Vert\, p(x'))"),
    "mart_kl": ("KL(p(x) || p(x')) (1 - p_y(x))", r"\mathrm{KL}(p(x) \,\Vert\, p(x'))\,(1 - p_y(x))"),
    "log_odds": ("log(1/p_y(@) - 1)", r"\log(1/p_y(@) - 1)"),
    "MovingAverage": ("mHuber(logit'_t, logit_t)", r"\mathrm{mHuber}(\mathrm{logit}'_t, \mathrm{logit}_t)"),
    "InputGradient": ("|grad CE(@)|^2", r"\Vert\nabla_x \mathrm{CE}(@)\Vert^2"),
    "ApproximateEMR": ("|grad h(@)|^2", r"\Vert\nabla_x h(@)\Vert^2"),
    "LSoftmax": ("L-Softmax(@)", r"\mathrm{LSoftmax}(@)"),
    "DeepFoolMargin": ("R(D(@))", r"R(\Delta(@))"),
    "AverageMargin": ("l_tau(a(@))", r"\ell_\tau(a(@))"),
    "WrongMargin": ("(-<g, theta>)", r"(-\langle g, \theta \rangle)"),
    "orthogonality": ("sum |W W' - I|^2", r"\textstyle\sum_l \Vert W_l W_l^\top - I \Vert_F^2"),
    "LinearRegions": ("MMR(@)", r"\mathrm{MMR}(@)"),
    "LinearisedMargin": ("max(0, gamma - d(@))", r"\max(0, \gamma - d(@))"),
}
SPACE = r"\ "
SAMPLES = {"clean": "x", "adversarial": "x'", "both": "x, x'", "parameters": "theta"}


def summary(row: Row) -> dict[str, str]:
    """The row's entries in a table of methods, all text.

    "craft": what crafts adversaries, "ascends" and "ascends tex": the loss that it climbs; "loss" and "tex": the
    training loss, summed over the terms and averaged over the batch; "weights": of single samples, w in the loss;
    "settings": of losses and penalties, and how coefficients change; "head". They are of the last phase, which goes
    from the share "begins" of the epochs on; "before": the losses of the phases before it. "start": the loss of the row
    that it starts from; "recipe": what it needs otherwise than its table. "source" and "note" are the row's own.
    """
    *before, last = row.phases
    found = _phase(last)
    found["head"] = "" if row.head is None else _settings(row.head)
    told = [_phase(phase) for phase in before]
    found["before"] = "; ".join(f"{one['loss']} ({one['craft'] or 'no adversaries'})" for one in told)
    found["start"] = "" if row.start is None else summary(row.start)["loss"]
    found["recipe"] = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in row.recipe.items())
    return found | {"source": row.source, "note": row.note}


def _phase(phase: Phase) -> dict[str, str]:
    loss = getattr(phase.craft, "loss", None)
    functions = [*([loss] if callable(loss) else []), *(term.function for term in phase.terms)]
    climbed = ("", "") if loss is None else _symbol(loss if callable(loss) else str(loss), "adversarial")
    changes = [f"{term.name} {_words(term.coefficient)}" for term in phase.terms if callable(term.coefficient)]
    return {
        "craft": "" if phase.craft is None else _settings(phase.craft, {"loss"}),
        "ascends": climbed[0],
        "ascends tex": climbed[1],
        "loss": _sum(phase.terms, 0),
        "tex": _sum(phase.terms, 1),
        "weights": _listed(_settings(term.weight) for term in phase.terms if term.weight is not None),
        "settings": _listed([*map(_settings, functions), *changes]),
        "begins": f"{phase.begin:.3g}",
    }


def _sum(terms: Iterable[Term], kind: int) -> str:
    told = ""
    for term in terms:
        value = _number(term.coefficient)
        sign = "-" if value.startswith("-") else "+"
        product = "" if value.lstrip("-") == "1" else value.lstrip("-") + (r"\," if kind else " ")
        product += ("w" + (r"\," if kind else " ")) * (term.weight is not None)
        told += (f" {sign} " if told else sign.strip("+")) + product + _symbol(term.function, term.at)[kind]
    return told


def _symbol(function: object, at: str) -> tuple[str, str]:
    name = function if isinstance(function, str) else called(function)
    words, tex = SYMBOLS.get(name, (f"{name}(@)", rf"\mathrm{{{name.replace('_', SPACE)}}}(@)"))
    samples = SAMPLES[at]
    return words.replace("@", samples), tex.replace("@", samples.replace("theta", r"\theta"))


def _settings(thing: object, without: Iterable[str] = ()) -> str:
    """The settings of a part, a head or a partial function: "MAIL (slope 10, bias -0.5)", "" of a plain function."""
    if isinstance(thing, partial):
        given = dict(thing.keywords)
    elif is_dataclass(thing):
        given = {one.name: getattr(thing, one.name) for one in fields(thing) if one.name not in without}
    else:
        return ""
    told = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in given.items() if value is not None)
    return f"{called(thing)} ({told})" if told else called(thing)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(describe(value))


def _number(coefficient: float | Schedule) -> str:
    value = getattr(coefficient, "value", None) if callable(coefficient) else coefficient
    return "c" if value is None else f"{value:.4g}"


def _words(schedule: Schedule) -> str:
    if isinstance(schedule, Steps):
        return ", ".join(f"x {factor:g} from {share:.3g} on" for share, factor in schedule.changes)
    return f"from 0 up until {schedule.until:.3g}" if isinstance(schedule, Ramp) else called(schedule)


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))
