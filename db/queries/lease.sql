-- The lease of a stream, which allows one writer at a time.

-- name: lease_acquire
-- Take the lease if it is free, expired or already belongs to this holder. Returns no row if another holder has it.
insert into codelupe.leases as held (stream, holder, epoch, expires_at)
values (%(stream)s, %(holder)s, 1, clock_timestamp() + make_interval(secs => %(ttl)s))
on conflict (stream) do update
    set holder = excluded.holder, epoch = held.epoch + 1,
        expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
    where held.holder is null or held.holder = excluded.holder or held.expires_at <= clock_timestamp()
returning epoch;

-- name: lease_of_another
-- Check whether another holder has or had the lease.
select true from codelupe.leases where stream = %(stream)s and holder <> %(holder)s;

-- name: lease_not_locked
-- Lock the lease, if no other transaction has locked it. Returns no row if one has.
select true from codelupe.leases where stream = %(stream)s for update skip locked;

-- name: lease_renew
-- Extend a lease that was still held when the statement began. First lock it, which may take as long as a write of the
-- holder; nobody can take the lease meanwhile. Returns no row if the lease is lost.
with held as materialized (
    select stream from codelupe.leases
    where stream = %(stream)s and holder = %(holder)s and epoch = %(epoch)s and expires_at > statement_timestamp()
    for update
)
update codelupe.leases l set expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
from held where l.stream = held.stream returning l.epoch;

-- name: lease_release
-- Release a lease. Does nothing if another holder has it.
update codelupe.leases set holder = null, expires_at = null
where stream = %(stream)s and holder = %(holder)s and epoch = %(epoch)s;

-- name: lease_idle_limit
-- Limit idle time to 15 s in transactions that lock the lease's row. If the process stops in the middle, the server
-- ends the transaction, and another holder can take the lease.
select set_config('idle_in_transaction_session_timeout', '15s', true);

-- name: lease_wait
-- Let a renewal wait for a long write of the same holder.
set local lock_timeout = '240s';

-- name: lease_lock
-- Read the lease and lock it, so that it cannot change before the transaction ends.
select holder, epoch, expires_at > clock_timestamp() from codelupe.leases where stream = %(stream)s for share;

-- name: lease_exclusive
-- Lock the lease exclusively. Every fenced write of the stream waits until the transaction ends.
select 1 from codelupe.leases where stream = %(stream)s for update;

-- name: lease_read
-- Read the lease as this transaction sees it, without a lock.
select holder, epoch, expires_at > clock_timestamp() from codelupe.leases where stream = %(stream)s;

-- name: lease_holder
-- Select the holder of the stream and the seconds until the lease expires.
select holder, extract(epoch from expires_at - clock_timestamp())::double precision
from codelupe.leases where stream = %(stream)s and holder is not null and expires_at > clock_timestamp();
