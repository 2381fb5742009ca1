-- What a stream is bound to, and requests for a run.

-- name: stream_create
-- Bind a stream if it is not bound yet.
insert into codelupe.streams (stream, source, base_model, base_revision, lora)
values (%(stream)s, %(source)s, %(base_model)s, %(base_revision)s, %(lora)s)
on conflict (stream) do nothing;

-- name: stream_get
-- Select what a stream is bound to.
select source, base_model, base_revision, lora from codelupe.streams where stream = %(stream)s;

-- name: training_request
-- Request a run as soon as possible.
insert into codelupe.training_requests (stream) values (%(stream)s)
on conflict (stream) do update set requested_at = now();

-- name: training_requested
-- Select the time of the last request. Returns no row if there was no request since the last claim.
select requested_at from codelupe.training_requests where stream = %(stream)s;

-- name: training_request_clear
-- Delete the requests that were made before the claim began.
delete from codelupe.training_requests where stream = %(stream)s and requested_at <= %(began)s;
