"""The engine `vllm`: in this process or beside it."""
