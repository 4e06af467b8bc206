"""Requests to S3, as coroutines of an s3fs filesystem."""
