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
  local values = redis.pcall('HMGET', key, 'fence', 'until', 'prior', 'attempt', 'requests', 'open', 'bytes')
  if values.err then stop(key .. ' is of another type') end
  return {
    fence = values[1], offered = values[2], prior = tonumber(values[3] or ''), attempt = tonumber(values[4] or ''),
    requests = tonumber(values[5] or ''), open = tonumber(values[6] or ''), bytes = tonumber(values[7] or ''),
  }
end

-- Whether the keys of an open batch are all there, as those of the queue are. O(1)
local function check_batch(batch, held)
  local members, outcomes = PREFIX .. 'members:' .. batch, PREFIX .. 'outcomes:' .. batch
  if not (held.offered and held.prior and held.attempt and held.requests and held.open and held.bytes) then
    stop(PREFIX .. 'batch:' .. batch .. ' is not whole')
  end
  if redis.pcall('ZCARD', members) ~= held.requests then
    stop(members .. ' has not ' .. decimal(held.requests) .. ' members')
  end
  if redis.pcall('HLEN', outcomes) ~= held.requests - held.open then
    stop(outcomes .. ' has not ' .. decimal(held.requests - held.open) .. ' members')
  end
end
