"""What alignment takes on one GPU, against padded pairs: `bash tests/gpu/run.sh`, outside CI.

Needs torch and transformers and neither Ray, vLLM, DeepSpeed nor a network; `carry.sh` fetches what a bare
machine lacks.  `schedule` says which parts there are and how long each may take, `__main__` runs each
in a process of its own and writes the JSON, `part` is that process, `subject` makes what is trained,
`pairs` is TRL's arithmetic, `steps` times a step, `agreement` compares numbers.
"""
