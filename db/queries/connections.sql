-- The server process of a connection, and the limits of its transactions.

-- name: transaction_limits
-- Limit the statements, the waits for locks and the idle time of this transaction. These statements take no snapshot.
set local statement_timeout = %(statement)s;
set local lock_timeout = %(lock)s;
set local idle_in_transaction_session_timeout = %(idle)s;

-- name: backend_is_busy
-- Check whether the server process of another connection is executing a statement. The process does not count as busy
-- if it has been idle for %(idle)s seconds, or if its statement is older than %(overdue)s seconds and it waits for its
-- client to read or write.
select coalesce(bool_or(
    case when state like 'idle%%' then state_change > clock_timestamp() - make_interval(secs => %(idle)s)
         else not (wait_event_type is not distinct from 'Client'
                   and query_start < clock_timestamp() - make_interval(secs => %(overdue)s))
    end is not false), false)
from pg_stat_activity where pid = %(pid)s and backend_start = %(started)s;

-- name: backend_self
-- Select the server process of this connection.
select pid, backend_start from pg_stat_activity where pid = pg_backend_pid();

-- name: backend_end
-- Terminate the server process of another connection. The start time guards against a reused process id.
select count(pg_terminate_backend(pid)) from pg_stat_activity where pid = %(pid)s and backend_start = %(started)s;
