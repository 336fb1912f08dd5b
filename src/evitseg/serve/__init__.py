"""The HTTP service of `evitseg serve`: images in, masks out.

The event loop only moves bytes. Everything that computes runs in the worker threads of a bounded queue (`work_queue`).
`app.create_app` makes the ASGI application, and `server.run` serves it until a signal arrives. What a request may ask
for is in tables: the kinds of answers (`answers`), their parameters (`parameters`) and the problems (`problems`). The
OpenAPI description and the page /docs are made from the same tables.

Unlike the rest of the package, these modules import packages of their extra, `serve`, at the top.
"""
