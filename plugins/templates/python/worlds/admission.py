"""Lets nothing be created in a namespace. wit/ says what the input is."""

import json

from golden import Metadata
from wit_world import exports
from wit_world.imports import config
from wit_world.imports.admission_types import Answer, Cause, Denial, Operation, Phase, Verdict_Allow, Verdict_Deny


class Admitter(exports.Admitter):
    def admit(self, input):
        namespace = json.loads(config.get()).get("namespace", "default")
        created = input.phase == Phase.VALIDATE and input.operation == Operation.CREATE
        if created and input.namespace == namespace:
            cause = Cause("FieldValueForbidden", "metadata.namespace", f"nothing may be created in {namespace}")
            return Answer(Verdict_Deny(Denial("use a namespace of your own", [cause])), None, [])
        return Answer(Verdict_Allow(), None, [])
