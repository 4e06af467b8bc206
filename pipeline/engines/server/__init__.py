"""The engine `server`: vLLM over HTTP."""
