"""The tokenizer and the three untrained models of the tiny world."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Fast

from .stories import documents, plain

BOS, EOS, PAD = 0, 1, 2
SPECIAL = ["<s>", "</s>", "<pad>"]
TOKENIZER_SEED = 7  # documents the tokenizer is trained on


# A run of function words is one piece (" is in the"): a key then stands next but one to its value, which should make
# looking from one to the other easier to learn (not measured). Any other word, with its space, is a piece of its own.
FUNCTION = "a an and are at be by for from had has in is it of on one that the their they this to was what where with"
WORDS = rf"( ({FUNCTION.replace(' ', '|')})(?![a-zA-Z]))+| ?[a-zA-Z]+| ?[0-9]| ?[^\sa-zA-Z0-9]+|\s+"


def build_tokenizer(documents_seed: int = TOKENIZER_SEED, vocabulary: int = 1536) -> Fast:
    """Byte-level BPE trained on the world: any text can be encoded, and most of the world's words are one token."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(map(plain, documents(20_000, documents_seed)), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return Fast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512)


def build_model(name: str, vocabulary: int) -> PreTrainedModel:
    """An untrained model of one of the three architectures: 6 layers, 8 heads of 16 dimensions, hidden size 128."""
    rope = dict(rope_type="default", rope_theta=100.0)
    shape = dict(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=8,
        head_dim=16,
        max_position_embeddings=512,
        # The defaults are made for large models. 0.06 is about 2/3 of 1/sqrt(128); a base of 100 spreads the 8 pairs
        # of a head over distances up to some 50 tokens, the length of a document.
        initializer_range=0.06,
        rope_parameters=rope,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    if name == "tiny-llama":
        return LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=256, tie_word_embeddings=True))
    if name == "tiny-llama-gqa":
        grouped = dict(num_key_value_heads=4, intermediate_size=288, tie_word_embeddings=True)
        return LlamaForCausalLM(LlamaConfig(**shape, **grouped))
    if name == "tiny-phi":
        rope["partial_rotary_factor"] = 0.5
        return PhiForCausalLM(PhiConfig(**shape, intermediate_size=384, resid_pdrop=0.0, embd_pdrop=0.0))
    raise ValueError(f"No recipe for a model called {name!r}; there are {', '.join(NAMES)}.")


NAMES = ("tiny-llama", "tiny-llama-gqa", "tiny-phi")
