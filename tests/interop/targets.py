"""What peft is told to change in each family, and which have a head that it saves."""

HEADS = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS"}
NAMES = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "gpt2": ["c_attn", "c_fc"],
    "llama": ["q_proj", "down_proj"],
    "t5": ["q", "wo"],
    "vit": ["q_proj", "fc2"],
    "whisper": ["q_proj", "fc1"],
}
