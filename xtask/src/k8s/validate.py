# Reads {"versions": [...], "objects": [...]} from standard input and prints a list of faults, each
# [number of the object, version, text], as JSON.
import json
import sys

import kubernetes_validate

asked = json.load(sys.stdin)
faults = []
for number, thing in enumerate(asked["objects"]):
    for version in asked["versions"]:
        try:
            used = kubernetes_validate.validate(thing, version, strict=True)
            if used != version:
                faults.append([number, version, "there are no schemas of this version"])
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(step) for step in error.path)
            faults.append([number, version, f"{where}: {error.message[:300]}"])
        except kubernetes_validate.SchemaNotFoundError as error:
            faults.append([number, version, f"unknown kind {error.kind} in {error.api_version}"])
print(json.dumps(faults))
