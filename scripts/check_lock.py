"""Checks that pyproject.toml, the lock and what mosaic imports agree; prints one line per disagreement.

Run it with the Python of a finished set-up. It walks the requirements of the direct dependencies through the metadata
of the installed packages, with markers evaluated for this machine, and says

- what the walk needs and the lock lacks, or holds in a version that does not fit,
- what the lock holds and nothing needs,
- what is installed in another version than the locked one,
- what mosaic imports without declaring it.

`--needed` prints the names that the walk needs instead. Local versions (`+cpu`) are not compared: the lock names the
release, and the index decides which build of it a machine gets.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["mosaic"]["lock"]
    locked = read_lock(ROOT / settings["file"])
    needed, problems = walk(direct_requirements(project), left_out=set(settings["left-out"]))
    if arguments == ["--needed"]:
        print("\n".join(sorted(needed)))
        return 0
    problems += disagreements(needed, locked, build_tools=set(settings["build-tools"]))
    problems += undeclared_imports(ROOT / "mosaic", {name for name, _ in direct_requirements(project)})
    for problem in problems:
        print(f"{settings['file']}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{settings['file']}: {len(locked)} packages, as pyproject.toml needs them")
    return 1 if problems else 0


def read_lock(path: Path) -> dict[str, str]:
    """Name -> version; every line is `name==version`, a comment or empty."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def direct_requirements(project: dict[str, Any]) -> list[tuple[str, Requirement]]:
    """The dependencies of the project and of the extras that the lock covers."""
    texts = list(project["project"]["dependencies"])
    for extra in project["tool"]["mosaic"]["lock"]["extras"]:
        texts += project["project"]["optional-dependencies"][extra]
    requirements = [Requirement(text) for text in texts]
    return [(canonicalize_name(requirement.name), requirement) for requirement in requirements]


def walk(direct: list[tuple[str, Requirement]], *, left_out: set[str]) -> tuple[dict[str, list[str]], list[str]]:
    """What the direct requirements need, as name -> ["who wants which versions"], and what does not fit."""
    needed: dict[str, list[str]] = {}
    problems: list[str] = []
    seen: set[tuple[str, str]] = set()
    waiting = [("pyproject.toml", requirement) for _, requirement in direct]
    while waiting:
        wanted_by, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in left_out:
            continue
        needed.setdefault(name, []).append(f"{wanted_by} wants {requirement}")
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement} (wanted by {wanted_by}) is not installed")
            continue
        if not public(requirement.specifier).contains(distribution.version, prereleases=True):
            problems.append(f"{name} {distribution.version} does not fit {wanted_by}, which wants {requirement}")
        for extra in ["", *sorted(requirement.extras)]:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(name, child) for child in requirements_of(distribution, extra)]
    return needed, problems


def requirements_of(distribution: metadata.Distribution, extra: str) -> Iterator[Requirement]:
    """The requirements that hold on this machine: those of one extra, or with extra "" the plain ones."""
    for text in distribution.requires or []:
        requirement = Requirement(text)
        plain = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if plain if not extra else (not plain and requirement.marker and requirement.marker.evaluate({"extra": extra})):
            yield requirement


def public(specifiers: SpecifierSet) -> SpecifierSet:
    """The same specifiers without local versions: `==2.13.0+cpu` becomes `==2.13.0`."""
    return SpecifierSet(",".join(str(specifier).split("+")[0] for specifier in specifiers))


def disagreements(needed: dict[str, list[str]], locked: dict[str, str], *, build_tools: set[str]) -> Iterator[str]:
    for name in sorted(needed.keys() - locked.keys()):
        yield f"{name} is missing: {needed[name][0]}"
    for name in sorted(locked.keys() - needed.keys() - build_tools):
        yield f"{name} is needed by nothing"
    for name, version in sorted(locked.items()):
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            yield f"{name}=={version} is not installed"
            continue
        if installed != version:
            yield f"{name}=={version} is installed as {installed}"


def undeclared_imports(package: Path, declared: set[str]) -> Iterator[str]:
    """Third-party modules that the package imports and pyproject.toml does not name."""
    providers = metadata.packages_distributions()
    for path in sorted(package.rglob("*.py")):
        for module in sorted(imported_modules(path) - sys.stdlib_module_names - {"mosaic"}):
            names = {canonicalize_name(name) for name in providers.get(module, [])}
            if not names & declared:
                yield f"{path.relative_to(ROOT)} imports {module!r}, which pyproject.toml does not declare"


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.split(".")[0])
    return modules


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
