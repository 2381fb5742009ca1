--
-- PostgreSQL database dump
--

\restrict 44zzExQvxNFtWZhJnEhKEZtT8t2OCKbo6pdtzfdC0pl8efr9HgmAI87tl2xgw2S

-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: codelupe; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA codelupe;


--
-- Name: run_rows_append_only(); Type: FUNCTION; Schema: codelupe; Owner: -
--

CREATE FUNCTION codelupe.run_rows_append_only() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if tg_op = 'DELETE' or old.outcome is not null
       or (old.run_id, old.file_id, old.role, old.content_sha256)
          is distinct from (new.run_id, new.file_id, new.role, new.content_sha256) then
        raise exception 'codelupe.run_rows is append-only (run %, file %)', old.run_id, old.file_id;
    end if;
    return new;
end $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: adapters; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.adapters (
    version bigint NOT NULL,
    stream text NOT NULL,
    parent_version bigint,
    folder text NOT NULL,
    manifest_sha256 text NOT NULL,
    evaluation jsonb NOT NULL,
    published_at timestamp with time zone DEFAULT now() NOT NULL,
    is_current boolean NOT NULL
);


--
-- Name: held_out; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.held_out (
    stream text NOT NULL,
    file_id bigint NOT NULL,
    run_id bigint NOT NULL,
    repository text,
    path text,
    language text NOT NULL,
    content text NOT NULL,
    content_sha256 text NOT NULL
);


--
-- Name: leases; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.leases (
    stream text NOT NULL,
    holder text,
    epoch bigint NOT NULL,
    expires_at timestamp with time zone,
    CONSTRAINT leases_check CHECK (((holder IS NULL) = (expires_at IS NULL)))
);


--
-- Name: ledger; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.ledger (
    stream text NOT NULL,
    file_id bigint NOT NULL,
    run_id bigint NOT NULL,
    disposition text NOT NULL,
    reason text,
    attempts integer DEFAULT 0 NOT NULL,
    not_before timestamp with time zone,
    claimed_at timestamp with time zone DEFAULT now() NOT NULL,
    settled_at timestamp with time zone,
    CONSTRAINT ledger_check CHECK (((disposition = 'claimed'::text) = (settled_at IS NULL))),
    CONSTRAINT ledger_check1 CHECK (((disposition <> ALL (ARRAY['rejected'::text, 'quarantined'::text])) OR (reason IS NOT NULL))),
    CONSTRAINT ledger_disposition_check CHECK ((disposition = ANY (ARRAY['claimed'::text, 'trained'::text, 'held_out'::text, 'rejected'::text, 'quarantined'::text, 'returned'::text])))
);


--
-- Name: migrations; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.migrations (
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: run_rows; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.run_rows (
    run_id bigint NOT NULL,
    file_id bigint NOT NULL,
    role text NOT NULL,
    content_sha256 text NOT NULL,
    outcome text,
    tokens bigint,
    CONSTRAINT run_rows_outcome_check CHECK ((outcome = ANY (ARRAY['trained'::text, 'unused'::text, 'rejected'::text, 'held_out'::text, 'replayed'::text, 'returned'::text]))),
    CONSTRAINT run_rows_role_check CHECK ((role = ANY (ARRAY['train'::text, 'held_out'::text, 'replay'::text])))
);


--
-- Name: runs; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.runs (
    run_id bigint NOT NULL,
    stream text NOT NULL,
    state text DEFAULT 'claimed'::text NOT NULL,
    parent_version bigint,
    seed bigint NOT NULL,
    epoch bigint NOT NULL,
    launches integer DEFAULT 0 NOT NULL,
    reason text,
    report jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    ended_at timestamp with time zone,
    CONSTRAINT runs_check CHECK (((state = ANY (ARRAY['published'::text, 'refused'::text, 'failed'::text, 'returned'::text])) = (ended_at IS NOT NULL))),
    CONSTRAINT runs_state_check CHECK ((state = ANY (ARRAY['claimed'::text, 'training'::text, 'judging'::text, 'published'::text, 'refused'::text, 'failed'::text, 'returned'::text])))
);


--
-- Name: runs_run_id_seq; Type: SEQUENCE; Schema: codelupe; Owner: -
--

ALTER TABLE codelupe.runs ALTER COLUMN run_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME codelupe.runs_run_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: streams; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.streams (
    stream text NOT NULL,
    source text NOT NULL,
    base_model text NOT NULL,
    base_revision text NOT NULL,
    lora jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: training_requests; Type: TABLE; Schema: codelupe; Owner: -
--

CREATE TABLE codelupe.training_requests (
    stream text NOT NULL,
    requested_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: code_files; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.code_files (
    id bigint NOT NULL,
    repository text,
    path text,
    language text,
    content text NOT NULL,
    quality_score real,
    license text,
    commit_sha text,
    phase text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);


--
-- Name: code_files_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.code_files ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.code_files_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Data for Name: adapters; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.adapters (version, stream, parent_version, folder, manifest_sha256, evaluation, published_at, is_current) FROM stdin;
1	qwen	\N	v1	0000000000000000000000000000000000000000000000000000000000000000	{"loss": 1.0}	2026-11-21 05:09:31.655211+00	f
2	qwen	1	v1	0000000000000000000000000000000000000000000000000000000000000000	{"loss": 1.0}	2026-11-21 05:09:31.680105+00	t
\.


--
-- Data for Name: held_out; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.held_out (stream, file_id, run_id, repository, path, language, content, content_sha256) FROM stdin;
qwen	2	1	owner/repo2	src/file2.py	python	# 2\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	e85810ef9bc24d3acc1dd05ce1c6b4ae74ff0554a001696c05159eb7f851445a
\.


--
-- Data for Name: leases; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.leases (stream, holder, epoch, expires_at) FROM stdin;
qwen	the release	1	2026-11-21 05:19:31.641067+00
\.


--
-- Data for Name: ledger; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.ledger (stream, file_id, run_id, disposition, reason, attempts, not_before, claimed_at, settled_at) FROM stdin;
qwen	1	1	trained	\N	0	\N	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.655211+00
qwen	2	1	held_out	\N	0	\N	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.655211+00
qwen	3	1	rejected	too_few_lines	0	\N	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.655211+00
qwen	4	1	trained	\N	0	\N	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.655211+00
qwen	5	1	trained	\N	0	\N	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.655211+00
qwen	6	1	trained	\N	0	\N	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.655211+00
qwen	7	2	trained	\N	0	\N	2026-11-21 05:09:31.661788+00	2026-11-21 05:09:31.680105+00
qwen	8	2	trained	\N	0	\N	2026-11-21 05:09:31.661788+00	2026-11-21 05:09:31.680105+00
qwen	9	2	trained	\N	0	\N	2026-11-21 05:09:31.661788+00	2026-11-21 05:09:31.680105+00
qwen	10	3	returned	\N	1	2312-02-02 21:09:31.701729+00	2026-11-21 05:09:31.68406+00	2026-11-21 05:09:31.701729+00
qwen	11	3	returned	\N	1	2312-02-02 21:09:31.701729+00	2026-11-21 05:09:31.68406+00	2026-11-21 05:09:31.701729+00
qwen	12	5	claimed	\N	0	\N	2026-11-21 05:09:31.719545+00	\N
qwen	13	5	claimed	\N	0	\N	2026-11-21 05:09:31.719545+00	\N
\.


--
-- Data for Name: migrations; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.migrations (name, sha256, applied_at) FROM stdin;
0001_initial.sql	079527c937848243b9dfa838f02639134b1f61246c185d7a063f16f35c5a28a4	2026-11-21 05:09:31.610308+00
\.


--
-- Data for Name: run_rows; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.run_rows (run_id, file_id, role, content_sha256, outcome, tokens) FROM stdin;
1	1	train	2ad6732350bd4f7a129193447a93374a2c79997506c158f9d4a70ca2238ed4ec	trained	10
1	2	held_out	e85810ef9bc24d3acc1dd05ce1c6b4ae74ff0554a001696c05159eb7f851445a	held_out	10
1	3	train	91a47880ae43809507458a9b6494ff4af2734d2fed390088a36d23ddc07189a1	rejected	10
1	4	train	334926f9545b226e5fb30f65369e6252132e034e264b559c78c68202e97d536e	trained	10
1	5	train	6c7aaf4e3fa38bc10824715d9577c41912efa73cf8c9e429b7dd78c725ce1e62	trained	10
1	6	train	3b38a012246a7b820cc1e3b8f0d2d9bf48c66e48125d0771fe469cb8ae3bde30	trained	10
2	7	train	2ad6732350bd4f7a129193447a93374a2c79997506c158f9d4a70ca2238ed4ec	trained	10
2	8	train	e85810ef9bc24d3acc1dd05ce1c6b4ae74ff0554a001696c05159eb7f851445a	trained	10
2	9	train	91a47880ae43809507458a9b6494ff4af2734d2fed390088a36d23ddc07189a1	trained	10
3	10	train	2ad6732350bd4f7a129193447a93374a2c79997506c158f9d4a70ca2238ed4ec	returned	10
3	11	train	e85810ef9bc24d3acc1dd05ce1c6b4ae74ff0554a001696c05159eb7f851445a	returned	10
4	12	train	2ad6732350bd4f7a129193447a93374a2c79997506c158f9d4a70ca2238ed4ec	returned	\N
4	13	train	e85810ef9bc24d3acc1dd05ce1c6b4ae74ff0554a001696c05159eb7f851445a	returned	\N
5	12	train	2ad6732350bd4f7a129193447a93374a2c79997506c158f9d4a70ca2238ed4ec	\N	\N
5	13	train	e85810ef9bc24d3acc1dd05ce1c6b4ae74ff0554a001696c05159eb7f851445a	\N	\N
\.


--
-- Data for Name: runs; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.runs (run_id, stream, state, parent_version, seed, epoch, launches, reason, report, created_at, started_at, heartbeat_at, ended_at) FROM stdin;
1	qwen	published	\N	1	1	1	\N	{"train": {"tokens_published": 40}}	2026-11-21 05:09:31.642614+00	2026-11-21 05:09:31.652968+00	\N	2026-11-21 05:09:31.655211+00
2	qwen	published	1	1	1	1	\N	{"train": {"tokens_published": 30}}	2026-11-21 05:09:31.661788+00	2026-11-21 05:09:31.677972+00	\N	2026-11-21 05:09:31.680105+00
3	qwen	refused	2	1	1	1	no gain	{"train": {"tokens_published": 20}}	2026-11-21 05:09:31.68406+00	2026-11-21 05:09:31.698016+00	\N	2026-11-21 05:09:31.701729+00
4	qwen	failed	2	1	1	0	it ended with code 1	\N	2026-11-21 05:09:31.705591+00	\N	\N	2026-11-21 05:09:31.71709+00
5	qwen	training	2	1	1	1	\N	\N	2026-11-21 05:09:31.719545+00	2026-11-21 05:09:31.727375+00	2026-11-21 05:09:31.729391+00	\N
\.


--
-- Data for Name: streams; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.streams (stream, source, base_model, base_revision, lora, created_at) FROM stdin;
qwen	code_files	m	rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr	{"rank": 8}	2026-11-21 05:09:31.639665+00
\.


--
-- Data for Name: training_requests; Type: TABLE DATA; Schema: codelupe; Owner: -
--

COPY codelupe.training_requests (stream, requested_at) FROM stdin;
qwen	2026-11-21 05:09:31.730838+00
\.


--
-- Data for Name: code_files; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.code_files (id, repository, path, language, content, quality_score, license, commit_sha, phase, metadata, created_at) FROM stdin;
1	owner/repo1	src/file1.py	Python	# 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.641927+00
2	owner/repo2	src/file2.py	Python	# 2\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.641927+00
3	owner/repo0	src/file3.py	Python	# 3\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.641927+00
4	owner/repo1	src/file4.py	Python	# 4\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.641927+00
5	owner/repo2	src/file5.py	Python	# 5\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.641927+00
6	owner/repo0	src/file6.py	Python	# 6\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.641927+00
7	another	src/file1.py	Python	# 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.66004+00
8	another	src/file2.py	Python	# 2\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.66004+00
9	another	src/file3.py	Python	# 3\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.66004+00
10	refused	src/file1.py	Python	# 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.683513+00
11	refused	src/file2.py	Python	# 2\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.683513+00
12	given back	src/file1.py	Python	# 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.704797+00
13	given back	src/file2.py	Python	# 2\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.704797+00
14	pending	src/file1.py	Python	# 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.729844+00
15	pending	src/file2.py	Python	# 2\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	90	\N	\N	\N	{}	2026-11-21 05:09:31.729844+00
16	poor	src/file1.py	Python	# 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n	10	\N	\N	\N	{}	2026-11-21 05:09:31.730501+00
\.


--
-- Name: runs_run_id_seq; Type: SEQUENCE SET; Schema: codelupe; Owner: -
--

SELECT pg_catalog.setval('codelupe.runs_run_id_seq', 5, true);


--
-- Name: code_files_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.code_files_id_seq', 16, true);


--
-- Name: adapters adapters_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.adapters
    ADD CONSTRAINT adapters_pkey PRIMARY KEY (version);


--
-- Name: held_out held_out_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.held_out
    ADD CONSTRAINT held_out_pkey PRIMARY KEY (stream, file_id);


--
-- Name: leases leases_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (stream);


--
-- Name: ledger ledger_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (stream, file_id);


--
-- Name: migrations migrations_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (name);


--
-- Name: run_rows run_rows_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.run_rows
    ADD CONSTRAINT run_rows_pkey PRIMARY KEY (run_id, file_id);


--
-- Name: runs runs_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (run_id);


--
-- Name: streams streams_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (stream);


--
-- Name: training_requests training_requests_pkey; Type: CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.training_requests
    ADD CONSTRAINT training_requests_pkey PRIMARY KEY (stream);


--
-- Name: code_files code_files_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.code_files
    ADD CONSTRAINT code_files_pkey PRIMARY KEY (id);


--
-- Name: adapters_one_current; Type: INDEX; Schema: codelupe; Owner: -
--

CREATE UNIQUE INDEX adapters_one_current ON codelupe.adapters USING btree (stream) WHERE is_current;


--
-- Name: ledger_returned; Type: INDEX; Schema: codelupe; Owner: -
--

CREATE INDEX ledger_returned ON codelupe.ledger USING btree (stream, file_id) WHERE (disposition = 'returned'::text);


--
-- Name: ledger_run; Type: INDEX; Schema: codelupe; Owner: -
--

CREATE INDEX ledger_run ON codelupe.ledger USING btree (run_id);


--
-- Name: run_rows_file; Type: INDEX; Schema: codelupe; Owner: -
--

CREATE INDEX run_rows_file ON codelupe.run_rows USING btree (file_id);


--
-- Name: runs_one_live; Type: INDEX; Schema: codelupe; Owner: -
--

CREATE UNIQUE INDEX runs_one_live ON codelupe.runs USING btree (stream) WHERE (ended_at IS NULL);


--
-- Name: run_rows append_only; Type: TRIGGER; Schema: codelupe; Owner: -
--

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON codelupe.run_rows FOR EACH ROW EXECUTE FUNCTION codelupe.run_rows_append_only();


--
-- Name: adapters adapters_parent_version_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.adapters
    ADD CONSTRAINT adapters_parent_version_fkey FOREIGN KEY (parent_version) REFERENCES codelupe.adapters(version);


--
-- Name: adapters adapters_stream_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.adapters
    ADD CONSTRAINT adapters_stream_fkey FOREIGN KEY (stream) REFERENCES codelupe.streams(stream);


--
-- Name: adapters adapters_version_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.adapters
    ADD CONSTRAINT adapters_version_fkey FOREIGN KEY (version) REFERENCES codelupe.runs(run_id);


--
-- Name: held_out held_out_run_id_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.held_out
    ADD CONSTRAINT held_out_run_id_fkey FOREIGN KEY (run_id) REFERENCES codelupe.runs(run_id);


--
-- Name: held_out held_out_stream_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.held_out
    ADD CONSTRAINT held_out_stream_fkey FOREIGN KEY (stream) REFERENCES codelupe.streams(stream);


--
-- Name: ledger ledger_run_id_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.ledger
    ADD CONSTRAINT ledger_run_id_fkey FOREIGN KEY (run_id) REFERENCES codelupe.runs(run_id);


--
-- Name: ledger ledger_stream_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.ledger
    ADD CONSTRAINT ledger_stream_fkey FOREIGN KEY (stream) REFERENCES codelupe.streams(stream);


--
-- Name: run_rows run_rows_run_id_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.run_rows
    ADD CONSTRAINT run_rows_run_id_fkey FOREIGN KEY (run_id) REFERENCES codelupe.runs(run_id);


--
-- Name: runs runs_stream_fkey; Type: FK CONSTRAINT; Schema: codelupe; Owner: -
--

ALTER TABLE ONLY codelupe.runs
    ADD CONSTRAINT runs_stream_fkey FOREIGN KEY (stream) REFERENCES codelupe.streams(stream);


--
-- PostgreSQL database dump complete
--

\unrestrict 44zzExQvxNFtWZhJnEhKEZtT8t2OCKbo6pdtzfdC0pl8efr9HgmAI87tl2xgw2S

