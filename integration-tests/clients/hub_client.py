"""huggingface_hub with the cache of a test: `hub_client.py download|offline|scan REPO [PATTERN ...]`. Prints JSON."""

import json
import sys

from huggingface_hub import scan_cache_dir, snapshot_download

command, repo, *patterns = sys.argv[1:]
if command == "scan":
    found = scan_cache_dir()
    revisions = [
        {
            "name": one.repo_id,
            "commit": revision.commit_hash,
            "refs": sorted(revision.refs),
            "bytes": revision.size_on_disk,
            "files": sorted(file.file_name for file in revision.files),
        }
        for one in found.repos
        for revision in one.revisions
    ]
    print(json.dumps({"revisions": revisions, "warnings": [str(warning) for warning in found.warnings]}))
else:
    folder = snapshot_download(repo, local_files_only=command == "offline", allow_patterns=patterns or None)
    print(json.dumps(folder))
