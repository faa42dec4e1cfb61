"""A pruned folder in the programs of others, which load it by its path. (More of them: tests/test_check.py.)"""

from pathlib import Path

import pytest
import torch
from helpers import Shape, byte_tokenizer, logits, prompts, some_plan, tiny
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import amp_tutorial as amp

SHAPES = [Shape(groups=2, group_size=2), Shape("llama"), Shape("phi"), Shape("gpt2")]


@pytest.fixture(params=SHAPES, ids=["groups", "llama saved as mistral", "phi", "gpt2"])
def pruned(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    dense = tiny(request.param)
    small = amp.prune(dense, some_plan(dense, heads=3 if request.param.groups == 4 else 2, neurons=9)).model
    return small, amp.save(small, byte_tokenizer(), tmp_path / "pruned")


def test_lm_eval_scores_the_folder(pruned: tuple[PreTrainedModel, Path]) -> None:
    small, folder = pruned
    context, choice = "Anna has the", " red kite"
    harness = HFLM(pretrained=str(folder), device="cpu", batch_size=2, dtype="float32", add_bos_token=False)
    asked = Instance("loglikelihood", {}, (context, choice), 0)
    ((found, greedy),) = harness.loglikelihood([asked], disable_tqdm=True)
    start = len(byte_tokenizer()(context).input_ids)
    ids = torch.tensor(byte_tokenizer()(context + choice).input_ids)
    scores = logits(small, [ids.tolist()])[0].log_softmax(-1)[start - 1 : -1]
    assert found == pytest.approx(float(scores.gather(1, ids[start:, None]).sum()), rel=1e-4)
    assert greedy == torch.equal(scores.argmax(-1), ids[start:])


def test_peft_trains_saves_and_merges_an_adapter_on_the_folder(
    pruned: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    small, folder = pruned
    settings = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), settings)
    ids = torch.tensor(prompts((9,)))
    adapted(input_ids=ids, labels=ids).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.any() for p in trained)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    wanted = logits(adapted.eval())
    assert not torch.allclose(wanted, logits(small), atol=1e-3)
    torch.testing.assert_close(logits(again.eval()), wanted)
    torch.testing.assert_close(logits(again.merge_and_unload()), wanted, atol=1e-4, rtol=1e-4)
