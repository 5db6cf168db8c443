"""Prompts: named templates with immutable versions and aliases."""

from mosaic.catalog.principals import ADMIN, Caller
from mosaic.catalog.records import PROMPT_VARIABLE, ModelVersion, PromptVersion
from mosaic.catalog.versioned import Versioned
from mosaic.errors import BadRequest

PROMPT = "prompt"
_LONGEST_TEMPLATE = 1024 * 1024


class Prompts(Versioned[PromptVersion]):
    """`catalog.prompts`."""

    kind = PROMPT

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
        if not 1 <= len(template) <= _LONGEST_TEMPLATE:
            raise BadRequest(f"template must have 1 to {_LONGEST_TEMPLATE} characters", param="template")
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in template):
            raise BadRequest("template has a NUL or a lone surrogate, which cannot be kept", param="template")
        return self._register(name, {"template": template}, owner=owner, comment=comment, new=new, by=by)

    @staticmethod
    def _as_version(found: ModelVersion) -> PromptVersion:
        template = str(found.spec["template"])
        return PromptVersion(
            prompt=found.model,
            version=found.version,
            full_name=found.full_name,
            template=template,
            variables=tuple(dict.fromkeys(sorted(PROMPT_VARIABLE.findall(template)))),
            comment=found.comment,
            created_at=found.created_at,
            created_by=found.created_by,
        )
