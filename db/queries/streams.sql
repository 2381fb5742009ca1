-- What a stream is bound to, and requests to train now.

-- name: stream_create
-- Bind a stream unless it is bound.
insert into codelupe.streams (stream, source, base_model, base_revision, lora)
values (%(stream)s, %(source)s, %(base_model)s, %(base_revision)s, %(lora)s)
on conflict (stream) do nothing;

-- name: stream_get
-- What a stream is bound to.
select source, base_model, base_revision, lora from codelupe.streams where stream = %(stream)s;

-- name: training_request
-- Ask for a run as soon as possible.
insert into codelupe.training_requests (stream) values (%(stream)s)
on conflict (stream) do update set requested_at = now();

-- name: training_requested
-- When a run was last asked for; no row when nobody did since the last claim.
select requested_at from codelupe.training_requests where stream = %(stream)s;

-- name: training_request_clear
-- A claim answers the requests made before it began.
delete from codelupe.training_requests where stream = %(stream)s and requested_at <= %(began)s;
