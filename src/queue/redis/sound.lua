-- After the prelude, in front of every script of a queue: whether its keys are all there.
--
-- Whoever deletes a key, or a server that loses one, leaves the others behind, and they hold the same requests:
-- the counters every request ever pushed, `requests` a record of each that is held, and each kind an ordered set. What
-- `prelude` counted must add up. O(1)
if not state.format then
  for name, count in pairs(cards) do
    if count > 0 then return lost('there is ' .. PREFIX .. name .. ' and no ' .. PREFIX .. 'state') end
  end
end

do
  local held = cards.delayed + cards.ready + cards.flight + cards.dead
  local settled = state.done + state.expired + state.cancelled + state.purged
  if state.pushed ~= held + settled then
    return lost(decimal(state.pushed) .. ' requests were pushed, and ' .. decimal(held + settled) .. ' are counted')
  end
  local done = cards.done
  for _, pair in ipairs({
    { 'requests', held + done }, { 'due', cards.delayed }, { 'settled', done + cards.dead },
    { 'offers', cards.flight > 0 and math.max(cards.offers, 1) or cards.offers },
    { 'retained', cards.offers == 0 and done or math.min(cards.retained, done) },
    { 'keyed', cards.keys > 0 and math.max(cards.keyed, 1) or 0 },
  }) do
    local name, expected = pair[1], pair[2]
    if cards[name] ~= expected then
      return lost(PREFIX .. name .. ' has ' .. decimal(cards[name]) .. ' members where ' .. decimal(expected)
        .. ' belong')
    end
  end
end

-- What a script on an open batch goes by. O(1)
local function held_batch(batch)
  local key = PREFIX .. 'batch:' .. batch
  local values = redis.pcall('HMGET', key, 'fence', 'until', 'formed_at', 'parent', 'prior', 'attempt', 'requests',
    'open', 'bytes')
  if values.err then stop(key .. ' is of another type') end
  local held = { fence = values[1], offered = values[2], formed_at = values[3], parent = values[4] }
  for i, name in ipairs({ 'prior', 'attempt', 'requests', 'open', 'bytes' }) do
    held[name] = tonumber(values[4 + i] or '')
  end
  return held
end

-- Whether the keys of an open batch are all there, as those of the queue are. O(log N)
local function check_batch(batch, held)
  local members, outcomes = PREFIX .. 'members:' .. batch, PREFIX .. 'outcomes:' .. batch
  if not (is_digits(held.offered) and is_digits(held.formed_at) and (held.parent == '' or is_digits(held.parent))
    and held.prior and held.attempt and held.requests and held.open and held.bytes) then
    stop(PREFIX .. 'batch:' .. batch .. ' is not whole')
  end
  if not call('ZSCORE', PREFIX .. 'offers', held.offered .. batch) then
    stop(PREFIX .. 'offers lacks batch ' .. batch)
  end
  if redis.pcall('ZCARD', members) ~= held.requests then
    stop(members .. ' has not ' .. decimal(held.requests) .. ' members')
  end
  if redis.pcall('HLEN', outcomes) ~= held.requests - held.open then
    stop(outcomes .. ' has not ' .. decimal(held.requests - held.open) .. ' members')
  end
end

-- Stops at an outcome that is none.
local function check_outcome(batch, id, outcome)
  if outcome and not (string.find(outcome, '^d%x%x%x%x%x%x%x%x$') or string.find(outcome, '^x.')
    or string.find(outcome, '^r' .. string.rep('%x', 16))) then
    stop(PREFIX .. 'outcomes:' .. batch .. ' has another value in ' .. id)
  end
end
