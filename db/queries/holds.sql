-- The pauses that people ask for.

-- name: hold_set
-- Pause a stream. A later pause may only add that training stops too.
insert into codelupe.holds (stream, stops_training) values (%(stream)s, %(stops_training)s)
on conflict (stream) do update set stops_training = holds.stops_training or excluded.stops_training;

-- name: hold_clear
-- End the pause of a stream. Returns no row if it was not paused.
delete from codelupe.holds where stream = %(stream)s returning stream;

-- name: hold_get
-- Select the pause of a stream.
select held_at, stops_training from codelupe.holds where stream = %(stream)s;
