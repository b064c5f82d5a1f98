-- After the prelude, in front of every script of a queue: whether its keys are all there.
--
-- Whoever deletes a key, or a server that loses one, leaves the others behind, and they hold the same requests:
-- the counters every request ever pushed, `requests` a record of each that is held, and each kind an ordered set. What
-- `prelude` counted must add up. O(1)
local function lost(what)
  return redis.error_reply('LOST queue ' .. string.match(PREFIX, '{(.*)}:') .. ' has lost keys: ' .. what)
end

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

-- The same of an open batch: what it lacks, or nil. O(1)
local function lacks(batch, requests, open)
  local members = PREFIX .. 'members:' .. batch
  local outcomes = PREFIX .. 'outcomes:' .. batch
  if not requests or not open then return PREFIX .. 'batch:' .. batch .. ' is not whole' end
  if call('ZCARD', members) ~= tonumber(requests) then return members .. ' has not ' .. requests .. ' members' end
  if call('HLEN', outcomes) ~= requests - open then
    return outcomes .. ' has not ' .. decimal(requests - open) .. ' members'
  end
end
