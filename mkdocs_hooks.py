"""Pages of the site that are not files in docs: README, changes, API and tutorials.

MkDocs calls the functions named `on_…`; mkdocstrings loads `Docstrings`. `mkdocs.yml` names both.

Tutorials are scripts in jupytext's percent format. Each is executed as a notebook, its page has the
outputs and figures, and the notebook is beside the page. With LEAP_TF_SHORT set they run in a short
form, as in CI: a line `meta_steps = 200  # short: 2` then reads `meta_steps = 2`.
"""

import ast
import base64
import functools
import os
import pathlib
import posixpath
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import griffe
import jupytext
import nbclient
import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent

# Pages that are written elsewhere in the repository.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/own_study/README.md": "own_study.md",
}

# From a page to its title, a sentence, and the names that it documents.
API = {
    "training": (
        "Training",
        "Meta-training with one call, under `model.fit`, or method against method.",
        "LeapOptimizer MetaTrainer adapt compare Comparison ComparedRun configure_threads",
    ),
    "learners": (
        "Learners",
        "Every method is a learner: pass one to `MetaTrainer(learner=…)`.",
        "Leap Reptile MAML FOMAML ANIL MetaSGD JointTraining HAT ProgressiveNets NoMetaLearning "
        "Learner StatelessLearner TaskUpdate TaskEnd TrainingPlan TrainingSetup",
    ),
    "tasks": (
        "Tasks",
        "Tasks from arrays, data frames and data sets, and distributions over tasks.",
        "ArrayTask FiniteTasks TaskSplits Task TaskDistribution Sinusoids sinusoid_splits "
        "datasets.*",
    ),
    "models": ("Models", "Two models to start with. Any Keras model will do.", "mlp conv_net"),
    "evaluation": (
        "Evaluation and callbacks",
        "How held-out tasks are evaluated, and when training on a task ends early.",
        "EvaluationConfig Evaluation TaskEvaluation StopAtError StopOnPlateau JSONLogger",
    ),
    "serving": ("Serving", "Exports that predict and adapt.", "export adapted_model"),
    "studies": (
        "Studies and clusters",
        "Studies that are configured with gin, or run on a Ray cluster.",
        "configurable Study cluster.*",
    ),
    "geometry": (
        "Geometry",
        "The formula of Leap: pure functions of tensors.",
        "geometry.PathGeometry geometry.PathPoint geometry.GradientPath geometry.start_path "
        "geometry.extend_path geometry.path_meta_gradient",
    ),
    "errors": (
        "Errors",
        "All errors of the library are a `LeapError`, and a built-in error as well.",
        "LeapError MetaTrainingDivergedError TaskFailedError TaskPoolError "
        "CheckpointMismatchError CheckpointUnreadableError UnsupportedModelError",
    ),
}


def on_files(files, config):
    """Adds the pages that come from elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for name, content in api_pages().items():
        files.append(File.generated(config, f"api/{name}.md", content=content))
    files.append(File.generated(config, "style.css", content=STYLE))
    scripts = {
        file.src_uri: pathlib.Path(file.abs_src_path).read_text("utf-8")
        for file in files
        if re.fullmatch(r"tutorials/\w+\.py", file.src_uri)
    }
    # TensorFlow's threads of two tutorials keep two cores busy.
    with ThreadPoolExecutor(2) as pool:
        for uri, generated in zip(scripts, pool.map(executed, scripts, scripts.values())):
            for suffix, content in generated.items():
                name = uri.removesuffix(".py") + suffix
                files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links to files of the repository at pages or copies of them on the site."""
    origin = {page: source for source, page in PAGES.items()}.get(page.file.src_uri)
    origin = origin or f"docs/{page.file.src_uri}"

    def relink(match):
        target, hash_, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        script = path.startswith("docs/tutorials/") and path.endswith(".py")
        if script and not origin.startswith("docs/tutorials/"):
            uri = path.removeprefix("docs/").removesuffix(".py") + ".md"
        elif path.startswith("docs/"):
            uri = path.removeprefix("docs/")
        elif path in PAGES:
            uri = PAGES[path]
        elif (ROOT / path).is_file():
            uri = f"repository/{path}"
            if files.get_file_from_path(uri) is None:
                content = (ROOT / path).read_bytes()
                files.append(File.generated(config, uri, content=content))
        else:
            return match[0]  # MkDocs says that it leads nowhere
        uri = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"]({uri}{hash_}{anchor})"

    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", relink, markdown)


@functools.cache  # `mkdocs serve` builds again at each change
def executed(uri, script):
    """Executes a tutorial and returns its page, notebook and figures by the end of their names.

    Raises:
        PluginError: a cell raised an error.
    """
    if os.environ.get("LEAP_TF_SHORT"):
        script = re.sub(r"= .*  # short: (.*)", r"= \1", script)
    script = re.sub("  # short: .*", "", script)
    notebook = jupytext.reads(script, fmt="py:percent")
    name = pathlib.PurePath(uri).stem
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        try:
            client.execute(env=environment)
        except nbclient.exceptions.CellExecutionError as error:
            raise PluginError(f"{uri}: {error}") from error

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:  # logs are not for readers
        cell.outputs = [each for each in cell.outputs if not is_log(each)]
    pages, generated = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            pages.append(cell.source)
            continue
        fence, source = "python", cell.source
        if source.startswith("%%"):  # %%bash, or %%writefile NAME
            line, source = source.split("\n", 1)
            magic, _, file_name = line.partition(" ")
            fence = f'python title="{file_name}"' if file_name else magic[2:]
        pages.append(f"```{fence}\n{source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                suffix = f"_{len(generated)}.png"
                generated[suffix] = base64.b64decode(data["image/png"])
                alternative = cell.metadata.get("alt", "Figure of the code above")
                pages.append(f"![{alternative}]({name}{suffix})")
            else:
                text = output.get("text", data.get("text/plain", "")).rstrip()
                pages.append(f"```{{.text .output}}\n{text}\n```")
    heading, *rest = pages
    download = f"[Notebook]({name}.ipynb){{ download }} · [script]({name}.py){{ download }}"
    generated[".md"] = "\n\n".join([heading, *rest, f"---\n\n{download}\n"])
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(COLAB))
    generated[".ipynb"] = jupytext.writes(notebook, fmt="ipynb")
    return generated


def is_log(output):
    text = output.get("text", "")
    return output.get("name") == "stderr" or (text and not re.sub(r"INFO:.*|\s", "", text))


def public_names(package):
    """Returns `__all__` of a package without importing it."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text("utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return names


def api_pages():
    """Returns the text of each page of the API.

    Raises:
        PluginError: a public name of `leap_tf` is on no page, or on two.
    """
    pages, documented = {}, []
    for page, (title, summary, names) in API.items():
        lines = [f"# {title}", summary]
        for name in names.split():
            package, _, last = name.rpartition(".")
            members = public_names(f"leap_tf.{package}") if last == "*" else [last]
            prefix = f"leap_tf.{package}." if package else "leap_tf."
            lines += [f"::: {prefix}{member}" for member in members]
            documented += [] if package else [name]
        pages[page] = "\n\n".join(lines)
    if sorted(documented) != sorted(public_names("leap_tf")):
        wrong = sorted(set(documented) ^ set(public_names("leap_tf"))) or documented
        raise PluginError(f"API in mkdocs_hooks.py must have every public name once, see {wrong}")
    return pages


# leap_tf is on no package index, so Colab gets it from a wheel.
COLAB = """To run this notebook in Colab, open it there with *File → Upload notebook*. Make a wheel
with `python -m build` in a checkout of leap_tf, upload it with Colab's file browser, and run
`%pip install leap_tf-*.whl` in a new cell. A tutorial that reads files of the repository needs
these files, too.
"""

STYLE = """
.md-grid { max-width: 72rem; }  /* lines of 100 characters fit on a wide screen */
.md-typeset img { background: white; border-radius: .2rem; }
.md-typeset .output { border-left: .15rem solid var(--md-accent-fg-color); }
.md-typeset .doc-children { margin-left: .8rem; }
"""


class Docstrings(griffe.Extension):
    """Reads the section `Example:` of a docstring as `Examples:`, griffe's name of it."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            value = re.sub(r"(?m)^Example:\n\n", "Examples:\n", obj.docstring.value)
            obj.docstring.value = value
