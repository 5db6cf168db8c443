"""Settings to a running platform: the only file that knows every part. Start reading at `up`.

    up:    hold the home -> what fits, which ports -> Ray -> the catalog and its first token -> Serve with HAProxy
           -> MLflow -> gateway, gateway-internal, control -> the indexes and endpoints that the catalog names
    init:  the same platform for a driver script: joins the one that runs, starts one where none does
    down:  the applications -> what is still in the logs -> Ray and every process under it
"""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from pydantic import Field
from ray import serve

import mosaic
from mosaic.catalog import Catalog
from mosaic.client import Client
from mosaic.data import Shipper, Tables
from mosaic.deployments import Control, Gateway, PlatformActor
from mosaic.errors import BadRequest, Conflict, NotFound, Unavailable
from mosaic.ids import new_id
from mosaic.models import ModelResolver, ModelSource
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA, lost, to_arrow
from mosaic.protocol import Principal, Wire
from mosaic.runtime import Cluster, RaySettings
from mosaic.settings import Settings
from mosaic.storage import Storage
