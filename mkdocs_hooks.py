"""Pages of the site that are not files in docs: README, changes, API and tutorials.

MkDocs calls the functions named `on_…`; mkdocstrings loads `Docstrings`. `mkdocs.yml` names both.
"""

import ast
import pathlib
import posixpath
import re

import griffe
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
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links to files of the repository at pages or copies of them on the site."""
    origin = {page: source for source, page in PAGES.items()}.get(page.file.src_uri)
    origin = origin or f"docs/{page.file.src_uri}"

    def relink(match):
        target, hash_, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if path.startswith("docs/"):
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


class Docstrings(griffe.Extension):
    """Reads the section `Example:` of a docstring as `Examples:`, griffe's name of it."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
