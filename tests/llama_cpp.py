"""llama.cpp itself, as the package xllamacpp carries it: its C functions, called by ctypes.

Structs of parameters are passed on as the bytes that llama.cpp fills with its defaults, so that
nothing here depends on what they hold.
"""

import ctypes
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Parameters = type("Parameters", (ctypes.Structure,), {"_fields_": [("any", ctypes.c_uint8 * 4096)]})
"""Larger than any of llama.cpp's; the rest is not read."""


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class ToLoad(ctypes.Structure):
    """`common_control_vector_load_info`; a string is one pointer, as in manylinux2014's C++."""

    _fields_ = (("strength", ctypes.c_float), ("fname", ctypes.c_char_p))


class Vector(ctypes.Structure):
    """`std::vector`."""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p))


class ControlVector(ctypes.Structure):
    """`common_control_vector_data`."""

    _fields_ = (("n_embd", ctypes.c_int32), ("data", Vector))


LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
"""`common_control_vector_load(const std::vector<common_control_vector_load_info> &)`."""


def library(package):
    """The functions of llama.cpp within xllamacpp."""
    [binary] = Path(package.__file__).parent.glob("*.so")
    functions = ctypes.CDLL(str(binary))
    for name, result, *arguments in (
        ("llama_model_default_params", Parameters),
        ("llama_context_default_params", Parameters),
        ("llama_model_load_from_file", ctypes.c_void_p, ctypes.c_char_p, Parameters),
        ("llama_init_from_model", ctypes.c_void_p, ctypes.c_void_p, Parameters),
        ("llama_batch_init", Batch, *[ctypes.c_int32] * 3),
        ("llama_batch_free", None, Batch),
        ("llama_decode", ctypes.c_int32, ctypes.c_void_p, Batch),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), ctypes.c_void_p),
        ("llama_set_adapter_cvec", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p,
         ctypes.c_size_t, *[ctypes.c_int32] * 3),
        ("llama_free", None, ctypes.c_void_p),
        ("llama_model_free", None, ctypes.c_void_p),
    ):  # fmt: skip
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions


@contextmanager
def loaded(functions, path):
    """A model from a GGUF file."""
    functions.llama_backend_init()
    model = functions.llama_model_load_from_file(
        str(path).encode(), functions.llama_model_default_params()
    )
    assert model, path
    try:
        yield model
    finally:
        functions.llama_model_free(model)


def logits(functions, model, ids, n_vocab, control_vector=None, n_layers=0):
    """Logits after every token, under a control vector's file if one is given."""
    settings = in_float32(functions.llama_context_default_params())
    context = functions.llama_init_from_model(model, settings)
    assert context
    try:
        if control_vector is not None:
            steer(functions, context, control_vector, n_layers)
        batch = functions.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = 1
        assert functions.llama_decode(context, batch) == 0
        found = np.ctypeslib.as_array(functions.llama_get_logits(context), (len(ids), n_vocab))
        functions.llama_batch_free(batch)
        return found.copy()
    finally:
        functions.llama_free(context)


def in_float32(settings):
    """Settings of a context that computes nothing in half precision.

    The types of keys and values are the only two neighbouring numbers that are 1, which is float16;
    0 is float32. Flash attention is the last of the four that are -1, "automatic"; 0 is off.
    """
    numbers = np.frombuffer(settings, dtype=np.int32, count=34)
    [types] = np.flatnonzero((numbers[:-1] == 1) & (numbers[1:] == 1))
    automatic = np.flatnonzero(numbers == -1)
    assert len(automatic) == 4
    numbers[[types, types + 1, automatic[-1]]] = 0
    return settings


def steer(functions, context, path, n_layers):
    """What `llama-cli --control-vector PATH` does, by llama.cpp's own reader of such files."""
    wish = ToLoad(1.0, str(path).encode())
    begin, size = ctypes.addressof(wish), ctypes.sizeof(wish)
    read = getattr(functions, LOAD)
    read.restype, read.argtypes = ControlVector, [ctypes.POINTER(Vector)]
    found = read(ctypes.byref(Vector(begin, begin + size, begin + size)))
    assert found.n_embd > 0, f"llama.cpp rejects the file: {found.n_embd}"
    count = (found.data.end - found.data.begin) // ctypes.sizeof(ctypes.c_float)
    done = functions.llama_set_adapter_cvec(
        context, found.data.begin, count, found.n_embd, 1, n_layers
    )
    assert done == 0
