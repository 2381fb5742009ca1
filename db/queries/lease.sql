-- The lease of a stream: one writer at a time.

-- name: lease_acquire
-- Take the lease when it is free, expired or already this holder's; no row when another has it.
insert into codelupe.leases as held (stream, holder, epoch, expires_at)
values (%(stream)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(ttl)s))
on conflict (stream) do update
    set holder = excluded.holder, epoch = held.epoch + 1,
        expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
    where held.holder is null or held.holder = excluded.holder or held.expires_at <= clock_timestamp()
returning epoch;

-- name: lease_renew
-- Prolong a lease that is still held; no row when it is lost.
update codelupe.leases set expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
where stream = %(stream)s and holder = %(holder)s and epoch = %(epoch)s and expires_at > clock_timestamp()
returning epoch;

-- name: lease_release
-- Give a lease back; a lost one stays its new holder's.
update codelupe.leases set holder = null, expires_at = null
where stream = %(stream)s and holder = %(holder)s and epoch = %(epoch)s;

-- name: lease_brief
-- Whoever holds the lease's row is brief: stopped in the middle, the server ends it, and another may take over.
select set_config('idle_in_transaction_session_timeout', '15s', true);

-- name: lease_lock
-- The lease as it is now, kept from changing hands until the transaction ends.
select holder, epoch, expires_at > clock_timestamp() from codelupe.leases where stream = %(stream)s for share;

-- name: lease_exclusive
-- Keep every fenced write of the stream waiting until the transaction ends.
select 1 from codelupe.leases where stream = %(stream)s for update;

-- name: lease_read
-- The lease as this transaction sees it, without a lock.
select holder, epoch, expires_at > clock_timestamp() from codelupe.leases where stream = %(stream)s;

-- name: lease_holder
-- Who holds the stream, and for how many more seconds.
select holder, extract(epoch from expires_at - clock_timestamp())::double precision
from codelupe.leases where stream = %(stream)s and holder is not null and expires_at > clock_timestamp();
