"""The backbone as a model of `transformers`, for its `generate`, its `Trainer`, and what else reads such models.

Importing this module registers the type `"bsbr"` with `AutoConfig` and `AutoModelForCausalLM`, so that a folder is
loaded by `AutoModelForCausalLM.from_pretrained(folder)`. None of its code comes from that folder.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from bsbr.hf.cache import BSBRCache
from bsbr.hf.configuration import BSBRConfig
from bsbr.hf.modeling import BSBRForCausalLM

AutoConfig.register(BSBRConfig.model_type, BSBRConfig, exist_ok=True)
AutoModelForCausalLM.register(BSBRConfig, BSBRForCausalLM, exist_ok=True)

__all__ = ["BSBRCache", "BSBRConfig", "BSBRForCausalLM"]
