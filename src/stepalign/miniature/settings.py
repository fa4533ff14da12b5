"""Settings of the training of the miniature's judge, without the code that trains it, so that recipes load fast."""

from stepalign.training.judge_settings import JudgeTraining

GUIDANCE_SCALE = 2.0
NUM_TRAINING_PAIRS, NUM_HELD_OUT_PAIRS = 32_000, 2000
SPM_TRAINING = JudgeTraining(
    num_steps=1500,
    batch_size=64,
    micro_batch=64,
    learning_rate=5e-4,
    num_warmup_steps=100,
    weight_decay=0.01,
    precision="fp32",
)
