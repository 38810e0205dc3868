"""Renders the overlays of configs/kubernetes and checks every object against the schemas of Kubernetes, strictly and offline.

    pip install kubernetes-validate
    python3 integration-tests/peers/kubernetes.py [--versions 1.34,1.37] [--pool-crd inferencepools.yaml]

Needs `kubectl` or `kustomize` in PATH. No cluster is asked. The schema of InferencePool is not one of Kubernetes: `--pool-crd` names the file
`config/crd/bases/inference.networking.k8s.io_inferencepools.yaml` of the Gateway API Inference Extension. Without it, these objects are skipped.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

import yaml
import jsonschema
import kubernetes_validate

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs" / "kubernetes"


def render(overlay):
    """The objects of an overlay."""
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            text = subprocess.run([*command, overlay], check=True, capture_output=True, text=True).stdout
            return list(yaml.safe_load_all(text))
    sys.exit("neither kustomize nor kubectl is in PATH")


def refuse_unknown_fields(schema):
    """Makes a CRD's schema strict."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            refuse_unknown_fields(part)


def pool_schema(path):
    """The schema of InferencePool v1."""
    crd = yaml.safe_load(path.read_text())
    schema = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    refuse_unknown_fields(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default="1.34,1.37")
    parser.add_argument("--pool-crd", type=pathlib.Path)
    options = parser.parse_args()
    failed = 0
    for overlay in sorted((FOLDER / "overlays").iterdir()):
        objects = render(overlay)
        for definition in objects:
            name = f"{overlay.name}: {definition['kind']} {definition['metadata']['name']}"
            try:
                if definition["kind"] == "InferencePool":
                    if options.pool_crd is None:
                        print(f"skipped  {name}: no --pool-crd")
                        continue
                    jsonschema.validate(definition, pool_schema(options.pool_crd))
                else:
                    for version in options.versions.split(","):
                        kubernetes_validate.validate(definition, version, strict=True)
                print(f"valid    {name}")
            except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
                failed += 1
                print(f"WRONG    {name}: {error.message} at {'/'.join(map(str, error.path))}")
    sys.exit(1 if failed else 0)


main()
