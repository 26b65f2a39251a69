"""The blob trigger's argument: an SDK-type BlobClient that imports nothing until a blob arrives.

Microsoft's azurefunctions-extensions-bindings-blob does the same, but imports azure-storage-blob and azure-identity
when the app is indexed, which takes two thirds of the app's import time. It also creates its client outside
`shared.services`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from azurefunctions.extensions.base import Datum, InConverter, SdkType

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient as AzureBlobClient


class BlobClient(SdkType):  # type: ignore[misc]
    """Marks a parameter that the worker fills with an `azure.storage.blob.BlobClient` for the blob that arrived."""

    def get_sdk_type(self) -> AzureBlobClient:
        """A client from the app's services; the host sends connection, container and blob as JSON."""
        from shared.services import services

        where = json.loads(self._data.content)
        return services().blob_client(where["ContainerName"], where["BlobName"])


class BlobClientConverter(InConverter, binding="blob", trigger="blobTrigger"):  # type: ignore[call-arg, misc]
    """The converter that the worker calls when it indexes the app and when a blob has arrived."""

    @classmethod
    def check_input_type_annotation(cls, pytype: type) -> bool:
        return issubclass(pytype, BlobClient)

    @classmethod
    def decode(cls, data: Datum | None, *, trigger_metadata: Any, pytype: type[BlobClient]) -> Any:
        """The client for the blob that `data` names. Raises ValueError when the host sent its content instead."""
        if data is None or data.type is None:
            return None
        if data.type != "model_binding_data":
            raise ValueError(f"the host sent {data.type} for a blob trigger, not model_binding_data")
        return pytype(data=data.value).get_sdk_type()
