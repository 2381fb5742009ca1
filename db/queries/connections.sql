-- A connection's server process.

-- name: backend_is_busy
-- Whether another connection's server process is at a statement, or was a moment ago. One that has been idle for as long
-- as its client waits, or that has been writing to it or reading from it for longer than a statement may take, is not.
select coalesce(bool_or(
    case when state like 'idle%%' then state_change > clock_timestamp() - make_interval(secs => %(idle)s)
         else not (wait_event_type is not distinct from 'Client'
                   and query_start < clock_timestamp() - make_interval(secs => %(overdue)s))
    end is not false), false)
from pg_stat_activity where pid = %(pid)s and backend_start = %(started)s;

-- name: backend_self
-- This connection's server process.
select pid, backend_start from pg_stat_activity where pid = pg_backend_pid();

-- name: backend_end
-- End another connection's server process, if it is still the same.
select count(pg_terminate_backend(pid)) from pg_stat_activity where pid = %(pid)s and backend_start = %(started)s;
