"""The run directory: the paths in it, and writing that a crash cannot leave half done.

layout      paths in a run directory, its lock and its manifest
atomic      atomic writes of files and folders, and recovery after a crash
seals       manifests with the SHA-256 of each file in a folder
jsonfiles   reading and writing of JSON files
"""

from finetale.rundir.atomic import recover, sync_folder, temporary_name, write_bytes, write_folder
from finetale.rundir.jsonfiles import read_json, read_record, write_json, write_record
from finetale.rundir.layout import LOCK_NAME, RunDirectory
from finetale.rundir.seals import (
    MANIFEST_NAME,
    add_file,
    is_sealed,
    sealed_sums,
    sha256_of,
    verify_folder,
    write_sealed_folder,
)

__all__ = [
    "LOCK_NAME",
    "MANIFEST_NAME",
    "RunDirectory",
    "add_file",
    "is_sealed",
    "read_json",
    "read_record",
    "recover",
    "sealed_sums",
    "sha256_of",
    "sync_folder",
    "temporary_name",
    "verify_folder",
    "write_bytes",
    "write_folder",
    "write_json",
    "write_record",
    "write_sealed_folder",
]
