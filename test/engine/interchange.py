"""What transformers, PEFT and gguf make of exports. Reads a request as JSON from standard input, answers in JSON."""

import json
import sys

import torch
from gguf import GGUFReader
from gguf.quants import dequantize, quantize
from gguf.constants import GGMLQuantizationType
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].flatten().tolist()


def read_gguf(path, weights):
    """Metadata, and the largest difference between the file's q8_0 and gguf's own quantizer, in bytes."""
    reader = GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    embedding = tensors["token_embd.weight"]
    original = load_file(weights)["model.embed_tokens.weight"].float().numpy()
    own = quantize(original, GGMLQuantizationType.Q8_0)
    return {
        "metadata": {key: value for key, value in values.items() if not isinstance(value, list)},
        "tokenCount": len(values["tokenizer.ggml.tokens"]),
        "types": {name: tensor.tensor_type.name for name, tensor in tensors.items()},
        "shapes": {name: [int(size) for size in tensor.shape] for name, tensor in tensors.items()},
        "differingBytes": int((own.view("uint8") != embedding.data.view("uint8").reshape(own.shape)).sum()),
        "errorMax": float(abs(dequantize(embedding.data, embedding.tensor_type) - original).max()),
    }


request = json.load(sys.stdin)
ids = request["ids"]
answer = {}
if "merged" in request:
    answer["merged"] = logits(load(request["merged"]), ids)
    answer["tokens"] = AutoTokenizer.from_pretrained(request["merged"])(request["text"])["input_ids"]
if "peft" in request:
    model = PeftModel.from_pretrained(load(request["peft"] + "/base"), request["peft"]).eval()
    answer["adapter"] = logits(model, ids)
    answer["unloaded"] = logits(model.merge_and_unload(), ids)
if "gguf" in request:
    answer["gguf"] = read_gguf(request["gguf"], request["weights"])
json.dump(answer, sys.stdout)
