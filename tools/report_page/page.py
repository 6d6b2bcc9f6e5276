"""The page: its template filled with the runs, their tables and their figures."""

import itertools
import json
import shlex
from pathlib import Path

from tools.pages import environment
from tools.plots import label
from tools.report_page.cases import case_groups
from tools.report_page.embedding_map import map_figures
from tools.report_page.figures import inline_svg, label_efficiency, probe_figures, training_figures
from tools.report_page.pictures import heat_scale
from tools.report_page.sample_views import sample_views
from tools.report_page.tables import cell_words
from utils import InputError


def fill_page(title: str, probes: list[dict], trainings: list[dict], tables: list[dict], maps: int) -> str:
    """The page as HTML. `maps` is how many cases of each kind are shown with what the encoder looks at."""
    numbers = itertools.count(1)

    def drawn(figures) -> list[dict]:
        return [{"title": title, "svg": inline_svg(figure, title, next(numbers))} for title, figure in figures]

    def drawn_or_why(make, run: dict) -> tuple[list, str]:
        try:
            return make(run), ""
        except InputError as error:
            return [], str(error)

    templates = environment(Path(__file__).parent)
    templates.filters |= {"class_name": label, "cell_words": cell_words, "in_words": in_words}
    contents = {"title": title, "tables": tables, "trainings": [], "probes": [], "origins": []}
    contents["training_figures"] = drawn(one for run in trainings for one in training_figures(run))
    contents["heat_scale"] = heat_scale()
    for run in trainings:
        samples, why = drawn_or_why(sample_views, run)
        contents["trainings"].append(run | {"samples": samples, "no_samples": why})
        contents["origins"].append(origin("main.py", run["folder"], run, data=run.get("data")))
    for one in probes:
        figures = {"figures": drawn(probe_figures(one))}
        figures["efficiency_figures"] = drawn([label_efficiency(one)] if one["efficiency"] else [])
        figures["map_figures"], figures["no_map"] = drawn_or_why(lambda run: drawn(map_figures(run)), one)
        figures["groups"], figures["on_maps"] = case_groups(one, maps)
        contents["probes"].append(one | figures)
        more = {"selected": one["selected"], "data": one.get("data")}
        contents["origins"].append(origin("main_linear.py", one["folder"], one["run"], **more))
    return templates.get_template("page.html.j2").render(contents)


def in_words(value) -> str:
    return "unknown" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def origin(script: str, folder: str, run: dict, **more) -> dict:
    """How a run was made: its folder, its command and the facts around it, with those of `more` that there are."""
    facts = {
        "commit": f"{run.get('git_commit')}{' with changes' if run.get('git_dirty') else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items()),
        "device": run.get("device"),
        "processes": run.get("world_size"),
        "started": run.get("started"),
    }
    facts |= {name: value for name, value in more.items() if value}
    return {"folder": folder, "command": command_line(script, run["args"]), "facts": facts}


def command_line(script: str, args: dict) -> str:
    words = []
    for name, value in args.items():
        flag = "--" + name.replace("_", "-")
        if name == "save_every" and isinstance(value, list):  # steps, or seconds
            value = value[0] if value[1] is None else f"{value[1]:g}s"
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(["python", script, *words])
