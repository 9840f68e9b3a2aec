"""Packages that a base installation has not: the extra of pyproject.toml that brings each."""

from importlib.util import find_spec

# Import name -> extra.
EXTRAS = {
    "aiohttp": "https",
    "datasets": "datasets",
    "datasketch": "audit",
    "gcsfs": "gcs",
    "gguf": "gguf",
    "flatbuffers": "stablehlo",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "torch": "onnx",
    "libtpu": "plan",
    "phonenumbers": "masking",
    "PIL": "images",
    "presidio_analyzer": "presidio",
    "soundfile": "sound",
    "stdnum": "masking",
    "lm_eval": "lm-eval",
    "opentelemetry": "otel",
    "optuna": "tune",
    "pandas": "pandas",
    "rouge_score": "text-metrics",
    "s3fs": "s3",
    "fastapi": "serve",
    "h11": "serve",
    "prometheus_client": "serve",
    "pydantic": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "sacrebleu": "text-metrics",
    "sentencepiece": "sentencepiece",
    "array_record": "tfds",
    "importlib_resources": "tfds",
    "tensorflow_datasets": "tfds",
    "wandb": "wandb",
}


def installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was imported without a spec
        return True


def require(package: str, what: str) -> None:
    """Raise ValueError, naming the extra to install, unless `package` (its import name) is installed.

    Args:
      what: what needs the package, with the setting's name: the subject of the error.
    """
    if not installed(package):
        command = f'pip install "instructrec_jax[{EXTRAS[package]}]"'
        raise ValueError(f"{what} needs the package {package}, which is not installed. Run `{command}`.")
