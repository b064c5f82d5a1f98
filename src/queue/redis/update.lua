-- Records outcomes, replaces the checkpoint and decides what is next, in one step.
--
-- ARGV[4], [5]   batch and fence
-- ARGV[6], [7]   '1' with a checkpoint else '0', checkpoint
-- ARGV[8]        'keep' (as it is), 'hold', 'release', 'defer', 'split' or 'finish'
-- ARGV[9]        hold, defer: until when; split, finish: when retried members are ready again
-- ARGV[10]       the most attempts, decimal
-- ARGV[11]       until when done members are kept once the batch has ended
-- ARGV[12]       finish: the outcome of the rest
-- ARGV[13...]    pairs of an id and its outcome. An outcome is: 'd', '1' with a result else '0', result;
--                or 'r', not before 16 (or zeros), error; or 'x', reason 1, error
-- Returns        'ok' | 'lost' | 'stranger', id | 'unsplittable'
-- O(o log N) for o outcomes; split and finish O(n log N) for n members
local BATCH, THEN, AT, MAX_ATTEMPTS, KEEP = ARGV[4], ARGV[8], ARGV[9], tonumber(ARGV[10]), ARGV[11]
local key, members = PREFIX .. 'batch:' .. BATCH, PREFIX .. 'members:' .. BATCH
local held = held_batch(BATCH)
if held.fence ~= ARGV[5] then return refuse('lost') end
check_batch(BATCH, held)
local counted, open = held.prior + held.attempt, held.open
local context = THEN == 'split' and call('HGET', key, 'context') or ''

-- The first outcome of each member named that has none yet, in order; or an id that is not a member.
local function fresh_outcomes()
  local ids, seen, fresh = {}, {}, {}
  for i = 13, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
  local records = values_of('requests', ids)
  local outcomes = values_of('outcomes:' .. BATCH, ids)
  for i, id in ipairs(ids) do
    local rec = records[i]
    if not rec or not call('ZSCORE', members, member_of(id, rec)) then return nil, id end
    if not seen[id] and not outcomes[i] and sub(rec, 1, 1) ~= 'd' then
      seen[id] = true
      fresh[#fresh + 1] = { id, rec, ARGV[12 + 2 * i] }
    end
  end
  return fresh
end

local function done(id, rec, outcome, kept)
  local sequence = next_sequence()
  local result = sub(outcome, 2, 2) == '1' and sub(outcome, 3) or nil
  remove('flight', id .. BATCH)
  add('done', id)
  add('settled', sequence .. id)
  if expires_of(rec) ~= NEVER then remove('expiry', expires_of(rec) .. id) end
  later('HSET', 'requests', id, record('d', '-', position_of(rec), NOW, attempts_of(rec) + counted, BATCH, sequence,
    kept, '-', fixed_of(rec), result))
  state.done, state.held_bytes = state.done + 1, state.held_bytes - size_of(rec)
end

-- The batch has ended: a done member is kept for a while, its payload is not.
local function retain(id)
  add('retained', KEEP .. id)
  drop('payload:' .. id)
end

local function come_back(id, rec, attempts, due, note)
  if expires_of(rec) ~= NEVER then add('expiry', expires_of(rec) .. id) end
  if due > NOW then
    later('HSET', 'requests', id, record('l', '-', position_of(rec), due, attempts, ZERO, ZERO, NEVER, '-',
      fixed_of(rec), note))
    add('due', due .. position_of(rec) .. id)
    add('delayed', id)
  else
    make_ready(id, rec, NOW, attempts, fixed_of(rec), note)
  end
end

-- Settles a member with a retry or reject outcome; dead letters are left for the end, in order.
local buried = {}
local function settle(id, rec, outcome)
  local attempts = attempts_of(rec) + counted
  local left = true
  remove('flight', id .. BATCH)
  if sub(outcome, 1, 1) == 'x' then
    buried[#buried + 1] = { id, rec, sub(outcome, 2, 2), sub(outcome, 3), attempts, BATCH }
  elseif sub(rec, 2, 2) == 'c' then
    forget(id, rec)
    state.cancelled = state.cancelled + 1
  elseif expires_of(rec) <= NOW then
    forget(id, rec)
    state.expired = state.expired + 1
  elseif attempts >= MAX_ATTEMPTS then
    buried[#buried + 1] = { id, rec, 'e', sub(outcome, 18), attempts, BATCH }
  else
    local due = sub(outcome, 2, 17)
    if AT > due then due = AT end
    come_back(id, rec, attempts, due, sub(outcome, 18))
    left = false
  end
  if left then state.held_bytes = state.held_bytes - size_of(rec) end
end

-- Opens a batch of these members of the old one, offered at once.
local function open_child(unsettled, from, to)
  local batch, bytes = successor(state.last_batch), 0
  if NOW > batch then batch = NOW end
  state.last_batch = batch
  for i = from, to do
    local member = unsettled[i]
    bytes = bytes + number(sub(member, 33))
    add('members:' .. batch, member)
    remove('flight', sub(member, 17, 32) .. BATCH)
    add('flight', sub(member, 17, 32) .. batch)
  end
  add('offers', ZERO .. batch)
  local count = to - from + 1
  call('HSET', PREFIX .. 'batch:' .. batch, 'parent', BATCH, 'attempt', 0, 'prior', counted, 'requests', count,
    'open', count, 'bytes', decimal(bytes), 'formed_at', NOW, 'context', context, 'until', ZERO)
end

-- Ends the batch: every member with an outcome is settled by it, the others are answered, in order. All of them went
-- through `check_members` before.
local function finish(rest)
  local unsettled, from = {}, 0
  repeat
    local page, ids = call('ZRANGE', members, from, from + CHUNK - 1), {}
    for i, member in ipairs(page) do ids[i] = sub(member, 17, 32) end
    local records = values_of('requests', ids, true)
    local outcomes = values_of('outcomes:' .. BATCH, ids)
    for i, id in ipairs(ids) do
      local rec, outcome = records[i], outcomes[i] or rest
      if sub(rec, 1, 1) == 'd' then
        later('HSET', 'requests', id, sub(rec, 1, 74) .. KEEP .. sub(rec, 91))
        retain(id)
      elseif not outcome then
        unsettled[#unsettled + 1] = page[i]
      elseif sub(outcome, 1, 1) == 'd' then
        done(id, rec, outcome, KEEP)
        retain(id)
      else
        settle(id, rec, outcome)
      end
    end
    from = from + CHUNK
  until #page < CHUNK
  for _, dead in ipairs(buried) do bury(unpack(dead)) end
  remove('offers', held.offered .. BATCH)
  drop('batch:' .. BATCH)
  drop('members:' .. BATCH)
  drop('outcomes:' .. BATCH)
  return unsettled
end

-- Offers the batch from this time on.
local function offer(at)
  remove('offers', held.offered .. BATCH)
  flush()
  add('offers', at .. BATCH)
  call('HSET', key, 'until', at)
end

-- What `finish` reads of the members, before anything is written.
local function check_members()
  for from = 0, held.requests - 1, CHUNK do
    local ids = {}
    for i, member in ipairs(call('ZRANGE', members, from, from + CHUNK - 1)) do
      ids[i] = sub(member, 17, 32)
      if #member ~= 40 then stop(members .. ' has another member') end
    end
    local records, outcomes = values_of('requests', ids), values_of('outcomes:' .. BATCH, ids)
    for i, id in ipairs(ids) do
      if not records[i] then stop(PREFIX .. 'requests has no record in ' .. id) end
      check_outcome(BATCH, id, outcomes[i])
    end
  end
end

local fresh, stranger = fresh_outcomes()
if not fresh then return refuse('stranger', stranger) end
if THEN == 'split' and open - #fresh < 2 then return refuse('unsplittable') end

if THEN == 'split' or THEN == 'finish' then check_members() end

if ARGV[6] == '1' then call('HSET', key, 'checkpoint', ARGV[7]) end
for _, one in ipairs(fresh) do
  local id, rec, outcome = one[1], one[2], one[3]
  if sub(outcome, 1, 1) == 'd' then
    done(id, rec, outcome, NEVER)
    outcome = 'd' .. sub(rec, 35, 42)
  end
  later('HSET', 'outcomes:' .. BATCH, id, outcome)
end
call('HSET', key, 'open', open - #fresh)
flush()
-- Holding on for longer gives nobody anything to do.
changed = changed or (THEN ~= 'hold' and THEN ~= 'keep') or #ARGV > 12 or (THEN == 'hold' and AT < held.offered)

if THEN == 'hold' then
  offer(AT)
elseif THEN == 'release' then
  offer(ZERO)
  call('HSET', key, 'fence', '', 'attempt', math.max(0, held.attempt - 1))
elseif THEN == 'defer' then
  offer(AT)
  call('HSET', key, 'fence', '')
elseif THEN == 'finish' then
  finish(ARGV[12])
elseif THEN == 'split' then
  local unsettled = finish(nil)
  local half = math.ceil(#unsettled / 2)
  open_child(unsettled, 1, half)
  open_child(unsettled, half + 1, #unsettled)
end
return answer({ 'ok' })
