"""What a model is for, and how a request becomes an answer: one small file per task, torch side.

Every task works on any transformers model object, streamed or plain, and knows nothing of units, slots or processes.
"""
