"""Prompts: named templates with immutable versions and aliases, kept as models keep theirs."""

from collections.abc import Callable, Sequence
from datetime import datetime

from mosaic.catalog import models, names, securables
from mosaic.catalog.audit import change, of_securable
from mosaic.catalog.objects import as_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import PROMPT_VARIABLE, AliasEvent, ModelVersion, PromptVersion, Securable
from mosaic.catalog.store import Store
from mosaic.catalog.updates import update
from mosaic.errors import BadRequest

PROMPT = "prompt"
_LONGEST_TEMPLATE = 1024 * 1024


class Prompts:
    """`catalog.prompts`."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def register(
        self,
        name: str,
        template: str,
        *,
        owner: str = ADMIN,
        comment: str = "",
        new: bool | None = None,
        by: Caller | None = None,
    ) -> PromptVersion:
        """The next version of a prompt, which is made if it is not there; `{{variable}}` is where a value goes in.

        The comment is the version's, and the prompt's own if that is made. With `new` true raises AlreadyExists if
        there is one, with `new` false NotFound if there is none.
        """
        name, caller, now = names.parse_object(name, PROMPT), as_principal(by or owner), self._now()
        names.check_principal(owner)
        if not 1 <= len(template) <= _LONGEST_TEMPLATE:
            raise BadRequest(f"template must have 1 to {_LONGEST_TEMPLATE} characters", param="template")
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in template):
            raise BadRequest("template has a NUL or a lone surrogate, which cannot be kept", param="template")
        with change(self._store, "createPromptVersion", of_securable(PROMPT, name), by=caller, now=now) as going:
            if new or (new is None and securables.find(going.connection, PROMPT, name) is None):
                made_by = {"owner": owner, "comment": comment, "created_by": caller.name}
                securables.insert(going.connection, PROMPT, name, now=now, **made_by)
            made = models.add_version(
                going.connection,
                name,
                now=now,
                of=PROMPT,
                source="",
                kind=PROMPT,
                spec={"template": template},
                checksums={},
                comment=comment,
                created_by=caller.name,
            )
            going.params["version"] = str(made.version)
            return _as_prompt(made)

    def update(
        self,
        name: str,
        *,
        by: Caller,
        comment: str | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Securable:
        """Change what is given of the prompt itself, not of a version. Raises NotFound, StaleEtag."""
        name, caller, now = names.parse_object(name, PROMPT), as_principal(by), self._now()
        changes = {} if comment is None else {"comment": comment}
        with change(self._store, "updatePrompt", of_securable(PROMPT, name), by=caller, now=now) as going:
            row = securables.get(going.connection, PROMPT, name, lock=True)
            return as_securable(update(going, row, expected_etag, owner=owner, by=caller, now=now, **changes))

    def whole(self, name: str) -> Securable:
        """The prompt itself, not one of its versions; raises NotFound."""
        name = names.parse_object(name, PROMPT)
        with self._store.read() as connection:
            return as_securable(securables.get(connection, PROMPT, name))

    def get(self, reference: str) -> PromptVersion:
        """By number (`main.ml.greeting/3`) or by alias (`main.ml.greeting@live`); raises NotFound with what exists."""
        asked = names.parse_model_version(reference)
        with self._store.read() as connection:
            return _as_prompt(models.get_version(connection, asked, of=PROMPT))

    def list(self, schema: str | None = None) -> Sequence[Securable]:
        """By name; of one schema if given, which must exist."""
        parsed = None if schema is None else names.parse_schema(schema)
        with self._store.read() as connection:
            return [as_securable(row) for row in securables.list_rows(connection, PROMPT, parsed)]

    def versions(self, name: str) -> Sequence[PromptVersion]:
        """Oldest first; raises NotFound."""
        name = names.parse_object(name, PROMPT)
        with self._store.read() as connection:
            return [_as_prompt(found) for found in models.list_versions(connection, name, of=PROMPT)]

    def set_alias(self, name: str, alias: str, version: int | None, *, by: Caller = ADMIN) -> None:
        """Point an alias at a version, or remove it (None); its history stays. Raises NotFound."""
        name, alias, caller = names.parse_object(name, PROMPT), names.parse_alias(alias), as_principal(by)
        if version is not None:
            version = names.parse_number(str(version), name)
        action = "setPromptAlias" if version is not None else "deletePromptAlias"
        params = of_securable(PROMPT, name, alias=alias, version=str(version or ""))
        with change(self._store, action, params, by=caller, now=self._now()) as going:
            going.happened = models.set_alias(
                going.connection, name, alias, version, principal=caller.name, now=self._now(), of=PROMPT
            )

    def alias_history(self, name: str, alias: str | None = None) -> Sequence[AliasEvent]:
        """Every change of a prompt's aliases, or of one, oldest first."""
        name, asked = names.parse_object(name, PROMPT), None if alias is None else names.parse_alias(alias)
        with self._store.read() as connection:
            return models.alias_history(connection, name, asked, of=PROMPT)

    def delete(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away with all versions; `catalog.undrop` brings them back. Raises NotFound, StaleEtag."""
        name, caller, now = names.parse_object(name, PROMPT), as_principal(by), self._now()
        with change(self._store, "deletePrompt", of_securable(PROMPT, name), by=caller, now=now) as going:
            securables.delete(going.connection, PROMPT, name, now=now, by=caller.name, expected_etag=expected_etag)


def _as_prompt(version: ModelVersion) -> PromptVersion:
    template = str(version.spec["template"])
    return PromptVersion(
        prompt=version.model,
        version=version.version,
        full_name=version.full_name,
        template=template,
        variables=tuple(dict.fromkeys(sorted(PROMPT_VARIABLE.findall(template)))),
        comment=version.comment,
        created_at=version.created_at,
        created_by=version.created_by,
    )
