"""All errors that Modelyard raises deliberately. No HTTP here: the controller maps classes to statuses.

The root and all errors in answers to callers are in `modelyard.errors`; the server's processes add:

```
ModelyardError
├── ConflictError
│   ├── WorkerNumberTakenError
│   └── QueueTakenError           live workers serve another model under the same name and version
├── UnavailableError
│   └── RegistryUnavailableError  MLflow does not answer
│       └── RegistrySchemaError   MLflow would have to migrate its database, or cannot read it
├── WireError                     bytes in Redis or on the queue that this version cannot read
│   └── NewerWireError            they are of a newer release
├── ModelError                    a model version cannot be served
│   ├── ModelNotFoundError
│   ├── ModelNotAllowedError      loading it would unpickle, which the settings forbid
│   ├── ModelContractError
│   ├── ModelWarmUpError
│   ├── ModelRequirementsError    its library has another major version here
│   ├── ModelEnvironmentError     no environment can be built from its requirements
│   ├── InferenceTimeoutError     a forward pass took longer than it may
│   └── OutputNotFiniteError      the model answered NaN or an infinity
└── ServiceError                  a process that was started did not come up or stopped
```
"""

from __future__ import annotations

from modelyard.errors import *  # noqa: F403  (one tree: the server imports its errors from here)
from modelyard.errors import ConflictError, ModelyardError, UnavailableError


class WorkerNumberTakenError(ConflictError):
    """The worker number asked for belongs to another model version."""

    code = "worker_number_taken"


class QueueTakenError(ConflictError):
    """Live workers of the queue serve another model that has the same name and version."""

    code = "queue_taken"


class RegistryUnavailableError(UnavailableError):
    """The MLflow registry does not answer."""

    code = "registry_unavailable"


class RegistrySchemaError(RegistryUnavailableError):
    """The registry's database has the schema of another MLflow; opening it would migrate it."""

    code = "registry_schema"


class WireError(ModelyardError):
    """Bytes in Redis or on the queue that this version of Modelyard cannot read."""

    code = "wire_unreadable"


class NewerWireError(WireError):
    """The bytes are of a newer schema version: another process of the pool may be able to read them."""

    code = "wire_newer"


class ModelError(ModelyardError):
    """A model version cannot be served."""

    code = "model_invalid"


class ModelNotFoundError(ModelError):
    """The registry has no such model or version."""

    code = "model_not_found"


class ModelNotAllowedError(ModelError):
    """Loading the model would run its author's code, which the settings do not allow."""

    code = "model_not_allowed"


class ModelContractError(ModelError):
    """The model has no signature that Modelyard can serve, or does not keep to it."""

    code = "model_contract"


class ModelWarmUpError(ModelError):
    """The model could not be loaded or failed on a warm-up input."""

    code = "model_warm_up"


class ModelRequirementsError(ModelError):
    """The library of the model's flavor has another major version here than the model was logged with."""

    code = "model_requirements"


class ModelEnvironmentError(ModelError):
    """No environment can be built from the model's requirements."""

    code = "model_environment"


class InferenceTimeoutError(ModelError):
    """A forward pass took longer than it may."""

    code = "timed_out"


class OutputNotFiniteError(ModelError):
    """The model answered NaN or an infinity to one of the job's samples."""

    code = "output_not_finite"


class ServiceError(ModelyardError):
    """A process that was started did not come up, or stopped."""

    code = "service_failed"
